//! From the YAML tree to a [`Catalog`]: field by field, each mistake with its line.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::str::FromStr;

use super::document::{Block, Catalog, CatalogError, Channel, Entry, Limits};
use super::image::{CatalogImage, Deprecation, Problem};
use super::lint::{Finding, Severity};
use super::yaml::{Mapping, Node, Value};
use crate::api::IndexRef;
use crate::digest::Sha256Digest;
use crate::version::OsVersion;

const TOP_KEYS: &[&str] = &["stable", "channels", "images", "blocked"];
const IMAGE_KEYS: &[&str] = &[
    "version",
    "url",
    "checksum",
    "size",
    "arch",
    "mirrors",
    "imageChecksum",
    "index",
    "minFrom",
    "deprecated",
];
const INDEX_KEYS: &[&str] = &["url", "checksum"];
const BLOCK_KEYS: &[&str] = &["version", "reason", "url"];
const DEPRECATED_KEYS: &[&str] = &["message", "replacement"];

/// The name of the channel that has a key of its own.
const STABLE: &str = "stable";
/// The longest channel name in bytes, as long as `spec.version` of an upgrade may be.
const MAX_CHANNEL_NAME: usize = 64;

pub(super) fn catalog(
    root: &Node<'_>,
    digest: Sha256Digest,
    limits: &Limits,
) -> Result<Catalog, CatalogError> {
    let not_a_catalog = |line, problem| CatalogError::NotACatalog { line, problem };
    let Value::Mapping(top) = &root.value else {
        let found = root.value.kind();
        return Err(not_a_catalog(root.line, format!("found {found} where a mapping with `images` belongs")));
    };
    if !top.0.iter().any(|(key, _)| key.text == "images") {
        let nearest = top.0.iter().find(|(key, _)| nearest_key(&key.text, &["images"]).is_some());
        let hint = nearest.map_or(String::new(), |(key, _)| format!("; did you mean it by {:?}?", key.text));
        return Err(not_a_catalog(root.line, format!("it has no `images`{hint}")));
    }
    let mut notes = Vec::new();
    note_unknown_keys(top, "the catalog", TOP_KEYS, &mut notes);
    let entries = images(list(top, "images", limits.images)?, limits, &mut notes)?;
    Ok(Catalog {
        digest,
        entries,
        channels: channels(top, limits)?,
        blocked: blocked(list(top, "blocked", limits.blocked)?, limits, &mut notes)?,
        notes,
    })
}

/// The items of a top-level list; none if it is absent or null.
fn list<'n, 'a>(
    top: &'n Mapping<'a>,
    key: &'static str,
    limit: usize,
) -> Result<&'n [Node<'a>], CatalogError> {
    let Some(node) = top.get(key) else { return Ok(&[]) };
    let Value::Sequence(items) = &node.value else {
        let problem = format!("found {} where the list `{key}` belongs", node.value.kind());
        return Err(CatalogError::NotACatalog { line: node.line, problem });
    };
    match items.get(limit) {
        Some(first_over) => Err(CatalogError::TooMany { line: first_over.line, what: key, limit }),
        None => Ok(items),
    }
}

fn images(items: &[Node<'_>], limits: &Limits, notes: &mut Vec<Finding>) -> Result<Vec<Entry>, CatalogError> {
    let mut lines = HashMap::new();
    let mut entries = Vec::with_capacity(items.len());
    for (position, item) in items.iter().enumerate() {
        let entry = entry(item, position, limits, notes);
        if let Some(version) = &entry.version {
            let key = (version.clone(), entry.arch.clone());
            if let Some(first_line) = lines.insert(key, entry.line) {
                let (version, arch) = (version.clone(), entry.arch);
                return Err(CatalogError::DuplicateImage { version, arch, line: entry.line, first_line });
            }
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(item: &Node<'_>, position: usize, limits: &Limits, notes: &mut Vec<Finding>) -> Entry {
    let line = item.line;
    let mut name = format!("images[{position}]");
    let Value::Mapping(map) = &item.value else {
        let found = item.value.kind();
        let message = format!("found {found} where an image with version, url and checksum belongs");
        let image = Err(vec![Problem { line, message }]);
        return Entry { line, name, version: None, arch: None, deprecated: None, image };
    };
    if let Some(Node { value: Value::Scalar(text), .. }) = map.get("version") {
        name = shorten(text, crate::version::MAX_VERSION_LEN);
    }
    note_unknown_keys(map, &name, IMAGE_KEYS, notes);
    let mut fields = Fields { map, line, limits, problems: Vec::new() };

    let version: Option<OsVersion> = fields.required("version", parsed);
    let arch = fields.optional("arch", parsed);
    let url = fields.required("url", web_address);
    let checksum = fields.required("checksum", parsed);
    let size = fields.optional("size", image_size);
    let mirrors = fields.mirrors();
    let image_checksum = fields.optional("imageChecksum", parsed);
    let index = fields.index();
    if let Some(Node { value: Value::Mapping(index), .. }) = map.get("index") {
        note_unknown_keys(index, &name, INDEX_KEYS, notes);
    }
    let min_from: Option<OsVersion> = fields.optional("minFrom", parsed);
    if let (Some(version), Some(min_from)) = (&version, &min_from)
        && min_from > version
    {
        fields.problem(
            "minFrom",
            format!("`minFrom` {min_from} is newer than the image, so no node could take it"),
        );
    }
    let deprecated = deprecation(map, &name, limits, notes);
    let image = match (version.clone(), url, checksum) {
        (Some(version), Some(url), Some(checksum)) if fields.problems.is_empty() => {
            let urls = std::iter::once(url).chain(mirrors).collect();
            let arch = arch.clone();
            Ok(CatalogImage { version, arch, urls, checksum, size, image_checksum, index, min_from })
        }
        _ => Err(fields.problems),
    };
    Entry { line, name, version, arch, deprecated, image }
}

/// The fields of one image, and what is wrong with them.
struct Fields<'n, 'a> {
    map: &'n Mapping<'a>,
    line: usize,
    limits: &'n Limits,
    problems: Vec<Problem>,
}

impl<'a> Fields<'_, 'a> {
    fn required<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.map.get(key).is_none() {
            self.problems.push(Problem { line: self.line, message: format!("`{key}` is missing") });
        }
        self.optional(key, parse)
    }

    fn optional<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let node = self.map.get(key)?;
        match text(node, self.limits.text).and_then(parse) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.push(Problem { line: node.line, message: format!("`{key}`: {message}") });
                None
            }
        }
    }

    /// Where the block index is and what it must be: without a checksum nobody vouches for it.
    fn index(&mut self) -> Option<IndexRef> {
        let node = self.map.get("index")?;
        let Value::Mapping(map) = &node.value else {
            let found = node.value.kind();
            let message = format!("`index`: found {found} where a mapping with url and checksum belongs");
            self.problem("index", message);
            return None;
        };
        let mut fields = Fields { map, line: node.line, limits: self.limits, problems: Vec::new() };
        let (url, checksum) = (fields.required("url", web_address), fields.required("checksum", parsed));
        let within = |Problem { line, message }| Problem { line, message: format!("`index`: {message}") };
        self.problems.extend(fields.problems.into_iter().map(within));
        Some(IndexRef { url: url?, checksum: checksum? })
    }

    fn mirrors(&mut self) -> Vec<String> {
        let Some(node) = self.map.get("mirrors") else { return Vec::new() };
        let Value::Sequence(items) = &node.value else {
            self.problem(
                "mirrors",
                format!("`mirrors`: found {} where a list of URLs belongs", node.value.kind()),
            );
            return Vec::new();
        };
        if items.len() > self.limits.mirrors {
            self.problem(
                "mirrors",
                format!("`mirrors`: more than {} of them; remove some", self.limits.mirrors),
            );
            return Vec::new();
        }
        items.iter().filter_map(|item| self.mirror(item)).collect()
    }

    fn mirror(&mut self, item: &Node<'a>) -> Option<String> {
        let url = text(item, self.limits.text).and_then(web_address);
        url.map_err(|message| {
            self.problems.push(Problem { line: item.line, message: format!("`mirrors`: {message}") });
        })
        .ok()
    }

    fn problem(&mut self, key: &str, message: String) {
        let line = self.map.get(key).map_or(self.line, |node| node.line);
        self.problems.push(Problem { line, message });
    }
}

/// Advice only, so a mistake in it is a note and the image stays usable.
fn deprecation(
    map: &Mapping<'_>,
    image: &str,
    limits: &Limits,
    notes: &mut Vec<Finding>,
) -> Option<Deprecation> {
    let node = map.get("deprecated")?;
    let mut warn = |line, message| notes.push(Finding::new(Severity::Warning, line, image, message));
    let Value::Mapping(fields) = &node.value else {
        warn(node.line, "`deprecated` is a mapping with message and replacement".to_owned());
        return Some(Deprecation { message: None, replacement: None });
    };
    let replacement = fields.get("replacement").and_then(|node| {
        let version = text(node, limits.text).and_then(parsed);
        version.map_err(|problem| warn(node.line, format!("`replacement`: {problem}"))).ok()
    });
    let message = fields.get("message").and_then(|node| prose(node, limits.text));
    note_unknown_keys(fields, image, DEPRECATED_KEYS, notes);
    Some(Deprecation { message, replacement })
}

fn channels(top: &Mapping<'_>, limits: &Limits) -> Result<BTreeMap<String, Channel>, CatalogError> {
    let mut channels = BTreeMap::new();
    if let Some(node) = top.get(STABLE) {
        channels.insert(STABLE.to_owned(), channel(STABLE, node.line, node, limits));
    }
    let Some(node) = top.get("channels") else { return Ok(channels) };
    let Value::Mapping(map) = &node.value else {
        let problem =
            format!("found {} where the mapping `channels` of names to versions belongs", node.value.kind());
        return Err(CatalogError::NotACatalog { line: node.line, problem });
    };
    for (key, node) in &map.0 {
        if channels.len() >= limits.channels {
            return Err(CatalogError::TooMany { line: key.line, what: "channels", limit: limits.channels });
        }
        let name = shorten(&key.text, limits.text);
        let new = channel(&key.text, key.line, node, limits);
        if let Some(first) = channels.insert(name.clone(), new) {
            return Err(CatalogError::DuplicateKey { key: name, line: key.line, first_line: first.line });
        }
    }
    Ok(channels)
}

fn channel(name: &str, line: usize, node: &Node<'_>, limits: &Limits) -> Channel {
    let target = if is_channel_name(name) {
        text(node, limits.text).and_then(parsed)
    } else {
        Err("a channel name starts with a letter and has lower-case letters, digits and single dashes; \
             no other can be asked for"
            .to_owned())
    };
    Channel { line, target: target.map_err(|message| Problem { line: node.line, message }) }
}

/// The names that `spec.version` of an upgrade accepts beside versions.
fn is_channel_name(name: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    name.len() <= MAX_CHANNEL_NAME
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.split('-').all(word)
}

fn blocked(
    items: &[Node<'_>],
    limits: &Limits,
    notes: &mut Vec<Finding>,
) -> Result<BTreeMap<OsVersion, Block>, CatalogError> {
    let mut blocked = BTreeMap::new();
    for item in items {
        let unreadable = |problem| CatalogError::UnreadableBlock { line: item.line, problem };
        let (version, reason, url) = match &item.value {
            Value::Mapping(map) => {
                note_unknown_keys(map, "blocked", BLOCK_KEYS, notes);
                let version =
                    map.get("version").ok_or_else(|| unreadable("`version` is missing".to_owned()))?;
                let prose = |key| map.get(key).and_then(|node| prose(node, limits.text));
                (version, prose("reason"), prose("url"))
            }
            _ => (item, None, None),
        };
        let version: OsVersion = text(version, limits.text).and_then(parsed).map_err(unreadable)?;
        // Blocked twice is blocked; the first reason stands.
        blocked.entry(version).or_insert(Block { line: item.line, reason, url });
    }
    Ok(blocked)
}

fn note_unknown_keys(map: &Mapping<'_>, subject: &str, known: &[&str], notes: &mut Vec<Finding>) {
    for (key, _) in &map.0 {
        if known.contains(&key.text.as_ref()) {
            continue;
        }
        let hint =
            nearest_key(&key.text, known).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        let message =
            format!("{:?} is not a key that is known, and has no effect{hint}", shorten(&key.text, 64));
        notes.push(Finding::new(Severity::Warning, key.line, subject, message));
    }
}

/// The known key that `key` is most likely a misspelling of: another case, or up to two typos.
fn nearest_key<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    if key.len() > 32 {
        return None;
    }
    let lower = key.to_lowercase();
    let distance = |candidate: &&str| strsim::osa_distance(&lower, &candidate.to_lowercase());
    let nearest = known.iter().copied().min_by_key(distance)?;
    // Two typos make anything of a three-letter word.
    (distance(&nearest) <= 2.min(nearest.len() / 2)).then_some(nearest)
}

fn text<'n>(node: &'n Node<'_>, limit: usize) -> Result<&'n str, String> {
    match &node.value {
        Value::Scalar(text) if text.len() > limit => Err(format!("longer than {limit} bytes")),
        Value::Scalar(text) => Ok(text),
        other => Err(format!("found {} where plain text belongs", other.kind())),
    }
}

/// Text for people: cut rather than refused, and anything that is not text is no text.
fn prose(node: &Node<'_>, limit: usize) -> Option<String> {
    match &node.value {
        Value::Scalar(text) => Some(shorten(text, limit)),
        _ => None,
    }
}

/// At most `limit` bytes of `text`, and a mark if something was cut off.
pub(super) fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let cut: String = text
        .char_indices()
        .take_while(|(at, letter)| at + letter.len_utf8() <= limit)
        .map(|(_, letter)| letter)
        .collect();
    cut + "…"
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn web_address(text: &str) -> Result<String, String> {
    let shown = || shorten(text, 80);
    if !["https://", "http://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err(format!("{:?} does not start with https:// or http://", shown()));
    }
    match text.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(text.to_owned()),
        Ok(_) => Err(format!("{:?} names no host", shown())),
        Err(error) => Err(format!("{:?} is not a URL: {error}", shown())),
    }
}

fn image_size(text: &str) -> Result<u64, String> {
    // Not FromStr alone, which takes a leading plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(0) => Err("0 bytes; give the size of the expanded image".to_owned()),
        // The API carries sizes as int64.
        Ok(bytes) if digits && i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(format!(
            "{:?} is not a number of bytes; give the size of the expanded image, like 1858076672",
            shorten(text, 32)
        )),
    }
}
