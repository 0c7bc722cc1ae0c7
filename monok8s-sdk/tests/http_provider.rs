//! A program that forgot to install a TLS provider. Alone in its process: providers are global.
#![cfg(any(feature = "client", feature = "image"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use monok8s_sdk::http::{HttpError, HttpOptions, http_client};

#[test]
fn a_missing_tls_provider_is_an_error_and_no_panic() {
    assert_eq!(http_client(&HttpOptions::default()).unwrap_err(), HttpError::NoTlsProvider);
    rustls::crypto::ring::default_provider().install_default().unwrap();
    assert!(http_client(&HttpOptions::default()).is_ok());
}
