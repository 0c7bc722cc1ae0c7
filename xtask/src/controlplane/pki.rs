//! The throw-away certificate authority of one control plane: everything talks TLS with client
//! certificates, so that another user of this machine cannot reach a cluster that root runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// Certificate.
    pub(super) certificate: String,
    /// Private key, PKCS #8.
    pub(super) key: String,
}

/// A certificate authority that signs for one control plane.
pub(super) struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a new key.
    pub(super) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "monok8s-controlplane");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate, in PEM.
    pub(super) fn certificate(&self) -> String {
        self.certificate.pem()
    }

    /// Serving certificate of the API server on loopback, under every address that clients have for it:
    /// QEMU's guests know the host's loopback as 10.0.2.2, and pods the Service by the first address of
    /// its range.
    pub(super) fn server(&self) -> Result<Identity> {
        let names = ["localhost", "127.0.0.1", "10.0.2.2", "10.96.0.1", "kubernetes.default.svc"];
        let names = names.map(str::to_owned);
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = name("kube-apiserver", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    /// Client certificate that authenticates as `user`, in `group` if there is one.
    pub(super) fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

/// Kubernetes reads the user from the common name and groups from organizations, of which rcgen writes one.
fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

/// Files that the API server and the controller manager are pointed at.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// Certificate of the [`Authority`].
    pub(super) authority: PathBuf,
    /// Serving certificate of the API server.
    pub(super) server_certificate: PathBuf,
    /// Its key.
    pub(super) server_key: PathBuf,
    /// Key that signs service account tokens.
    pub(super) tokens_key: PathBuf,
    /// Public half of it, to check them with.
    pub(super) tokens_public_key: PathBuf,
}

impl Files {
    /// Writes everything into `directory`, which must be private.
    pub(super) fn write(authority: &Authority, directory: &Path) -> Result<Self> {
        let server = authority.server()?;
        let tokens = KeyPair::generate()?;
        let save = |name: &str, pem: String| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, pem).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            authority: save("ca.crt", authority.certificate())?,
            server_certificate: save("apiserver.crt", server.certificate)?,
            server_key: save("apiserver.key", server.key)?,
            tokens_key: save("sa.key", tokens.serialize_pem())?,
            tokens_public_key: save("sa.pub", tokens.public_key_pem())?,
        })
    }
}
