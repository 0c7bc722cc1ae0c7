//! A YAML document as a tree in which every node knows its line.
//!
//! Stricter than YAML where a catalog read by two programs must mean the same to both: one
//! document, plain text keys, no key twice in a mapping, and no aliases. Without aliases the tree
//! is never larger than its text, so the caps on bytes, nodes and depth bound all work.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::document::CatalogError;

/// Deeper than any catalog; bounds the recursion of the reader.
const MAX_DEPTH: usize = 32;
/// Scalars, sequences and mappings, keys included: bounds memory to a few MiB.
const MAX_NODES: usize = 64 * 1024;

/// A value and the line (from 1) it starts on.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) line: usize,
    pub(super) value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    /// No value: absent, `~` or `null`.
    Null,
    /// The text as written, whatever type YAML would make of it.
    Scalar(Cow<'a, str>),
    Sequence(Vec<Node<'a>>),
    Mapping(Mapping<'a>),
}

/// Entries in the order of the document; no key occurs twice.
#[derive(Debug, Default)]
pub(super) struct Mapping<'a>(pub(super) Vec<(Key<'a>, Node<'a>)>);

#[derive(Debug)]
pub(super) struct Key<'a> {
    pub(super) line: usize,
    pub(super) text: Cow<'a, str>,
}

impl<'a> Mapping<'a> {
    /// The value of `key`, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Node<'a>> {
        let (_, node) = self.0.iter().find(|(candidate, _)| candidate.text == key)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }
}

impl Value<'_> {
    /// What this is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "plain text",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// Reads the one document of `text`.
pub(super) fn parse(text: &str) -> Result<Node<'_>, CatalogError> {
    let options = granit_parser::options! { emit_comments: false };
    let mut reader = Reader { events: Parser::new_from_str_with_options(text, options), nodes: 0 };
    let mut document = None;
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::DocumentStart(..) if document.is_some() => {
                return Err(CatalogError::SeveralDocuments { line: span.start.line() });
            }
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamEnd => {}
            node => document = Some(reader.node(node, span, 0)?),
        }
    }
    Ok(document.unwrap_or(Node { line: 1, value: Value::Null }))
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, CatalogError> {
        self.events.next().transpose().map_err(|error| CatalogError::Syntax {
            line: error.marker().line(),
            column: error.marker().col() + 1,
            problem: error.info(),
        })
    }

    /// The next event inside a collection, which its end must follow.
    fn inside(&mut self, line: usize) -> Result<(Event<'a>, Span), CatalogError> {
        self.next()?.ok_or_else(|| CatalogError::Syntax {
            line,
            column: 1,
            problem: "the list or mapping that starts here does not end".to_owned(),
        })
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node<'a>, CatalogError> {
        let line = span.start.line();
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(CatalogError::TooMany { line, what: "values", limit: MAX_NODES });
        }
        if depth > MAX_DEPTH {
            return Err(CatalogError::TooMany { line, what: "levels", limit: MAX_DEPTH });
        }
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if is_null(&text) => Value::Null,
            Event::Scalar(text, ..) => Value::Scalar(text),
            Event::SequenceStart(..) => Value::Sequence(self.sequence(line, depth)?),
            Event::MappingStart(..) => Value::Mapping(self.mapping(line, depth)?),
            Event::Alias(_) => return Err(CatalogError::Alias { line }),
            other => {
                let problem = format!("{other:?} where a value belongs");
                return Err(CatalogError::Syntax { line, column: span.start.col() + 1, problem });
            }
        };
        Ok(Node { line, value })
    }

    fn sequence(&mut self, line: usize, depth: usize) -> Result<Vec<Node<'a>>, CatalogError> {
        let mut items = Vec::new();
        loop {
            match self.inside(line)? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, line: usize, depth: usize) -> Result<Mapping<'a>, CatalogError> {
        let mut entries = Vec::new();
        let mut seen: HashMap<Cow<'a, str>, usize> = HashMap::new();
        loop {
            let (event, span) = self.inside(line)?;
            let line = span.start.line();
            let text = match event {
                Event::MappingEnd => return Ok(Mapping(entries)),
                Event::Scalar(text, ..) => text,
                Event::Alias(_) => return Err(CatalogError::Alias { line }),
                _ => {
                    let problem = "a key is plain text, not a list or mapping".to_owned();
                    return Err(CatalogError::Syntax { line, column: span.start.col() + 1, problem });
                }
            };
            self.nodes += 1;
            if let Some(first_line) = seen.insert(text.clone(), line) {
                return Err(CatalogError::DuplicateKey {
                    key: super::read::shorten(&text, 64),
                    line,
                    first_line,
                });
            }
            let (event, span) = self.inside(line)?;
            entries.push((Key { line, text }, self.node(event, span, depth + 1)?));
        }
    }
}

fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}
