//! The API server's audit log: who wrote what.
//!
//! The log is written before the response is sent (its default, blocking, mode), so a write that a
//! client saw succeed is in the log.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Everything but reads, without bodies, once a request when its response is complete.
pub(super) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: None
  verbs: [get, list, watch]
- level: Metadata
";

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditMark(u64);

/// A request that was not a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedWrite {
    /// Who asked, such as `system:serviceaccount:monok8s-system:agent`.
    pub user: String,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural name of the kind; with the subresource as in `nodes/status`.
    pub resource: String,
    /// Namespace, if the object is in one.
    pub namespace: Option<String>,
    /// Name of the object; absent where the server chose it.
    pub name: Option<String>,
    /// HTTP status of the answer.
    pub code: u16,
}

/// Reads the audit log of a control plane.
#[derive(Debug, Clone)]
pub struct AuditLog {
    path: PathBuf,
}

impl AuditLog {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The present end of the log.
    pub fn mark(&self) -> Result<AuditMark> {
        Ok(AuditMark(self.open()?.map_or(Ok(0), |file| file.metadata().map(|found| found.len()))?))
    }

    /// Every write whose answer was sent after `mark`, also the refused ones, in order.
    pub fn writes_since(&self, mark: AuditMark) -> Result<Vec<AuditedWrite>> {
        let Some(mut file) = self.open()? else {
            return Ok(Vec::new());
        };
        file.seek(SeekFrom::Start(mark.0))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        parse(&text)
    }

    fn open(&self) -> Result<Option<File>> {
        match File::open(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        }
    }
}

/// The fields we read of an `audit.k8s.io/v1` Event.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: Option<String>,
    name: Option<String>,
    api_group: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

/// One event a line; a last line without its end is still being written.
fn parse(text: &str) -> Result<Vec<AuditedWrite>> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            let event: Event =
                serde_json::from_str(line).with_context(|| format!("not an audit event: {}", line.trim()))?;
            Ok(AuditedWrite::from(event))
        })
        .collect()
}

impl From<Event> for AuditedWrite {
    fn from(event: Event) -> Self {
        let object = event.object_ref.unwrap_or_default();
        let resource = match object.subresource.as_str() {
            "" => object.resource,
            subresource => format!("{}/{subresource}", object.resource),
        };
        Self {
            user: event.user.username,
            verb: event.verb,
            group: object.api_group,
            resource,
            namespace: object.namespace,
            name: object.name,
            code: event.response_status.map_or(0, |status| status.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_user_verb_and_subresource_and_leaves_an_unfinished_line() {
        let line = r#"{"verb":"patch","user":{"username":"op"},"objectRef":{"resource":"osupgrades","subresource":"status","name":"u","apiGroup":"monok8s.io"},"responseStatus":{"code":200}}"#;
        let writes = parse(&format!("{line}\n{{\"verb\":")).unwrap();
        let [write] = writes.as_slice() else { panic!("{writes:?}") };
        assert_eq!(
            *write,
            AuditedWrite {
                user: "op".into(),
                verb: "patch".into(),
                group: "monok8s.io".into(),
                resource: "osupgrades/status".into(),
                namespace: None,
                name: Some("u".into()),
                code: 200,
            }
        );
    }
}
