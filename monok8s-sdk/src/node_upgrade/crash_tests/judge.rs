//! What must hold of the media after every power failure.

use super::super::fixture::{image, version};
use super::super::*;
use super::machine::Machine;
use crate::api::ImageRef;
use crate::boot::{BootBackend as _, LoaderStatus};
use crate::digest::Sha256Digest;
use crate::disk::fault::{CrashState, Files, Medium};
use crate::slot::Slot;
use crate::version::OsVersion;

/// What the writer keeps back until the end.
pub(super) const HEAD: usize = 64 * 1024;

/// An image, and what it is downloaded as.
pub(super) struct OsImage {
    pub(super) version: OsVersion,
    pub(super) bytes: Vec<u8>,
    pub(super) artifact: Vec<u8>,
}

impl OsImage {
    /// An image in which every other 64 KiB are zero, so that it takes many operations.
    pub(super) fn new(text: &str, seed: u8, units: usize) -> Self {
        let unit = |at: usize| {
            let byte = if at % 2 == 1 { 0 } else { seed.wrapping_add(u8::try_from(at).unwrap()) | 1 };
            std::iter::repeat_n(byte, HEAD)
        };
        let bytes: Vec<u8> = (0..units).flat_map(unit).collect();
        let artifact = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        Self { version: version(text), bytes, artifact }
    }

    pub(super) fn hop(&self) -> ImageRef {
        let checksum = Sha256Digest::of(&self.artifact);
        ImageRef { checksum, ..image(&self.version.to_string()) }
    }

    pub(super) fn is_in(&self, medium: &Medium) -> bool {
        medium.holds(0, &self.bytes)
    }
}

/// What a slot holds, compared with what it held and with what it shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Old,
    New,
    /// Anything else; its first 64 KiB are zero.
    Headless,
    /// Anything else.
    Torn,
}

/// Judges the states of one upgrade of slot B.
pub(super) struct Judge<'a> {
    machine: &'a Machine,
    old: Medium,
    new: &'a OsImage,
    /// The last record and loader files that were looked at, and what they say.
    seen: Option<(Files, Files, Record, LoaderStatus)>,
}

impl<'a> Judge<'a> {
    /// `old` is what was in slot B before.
    pub(super) fn new(machine: &'a Machine, old: Medium, new: &'a OsImage) -> Self {
        Self { machine, old, new, seen: None }
    }

    /// What is wrong with a state, if anything is.
    pub(super) fn judge(&mut self, state: &CrashState) -> Result<(), String> {
        let medium = state.disk(&self.machine.b);
        let content = self.content(&medium)?;
        let (record, loader) = self.state_files(state)?;
        self.judge_record(&record, content)?;
        if loader.may_boot(Slot::B) && !matches!(content, Content::Old | Content::New) {
            return Err(format!("the loader may boot slot B, which is {content:?}"));
        }
        if !loader.is_confirmed(Slot::A) && !loader.is_confirmed(Slot::B) {
            return Err("nothing is left to fall back to".to_owned());
        }
        let boots = loader.clone().boot_once().ok_or("nothing boots")?;
        match (boots, content) {
            (Slot::A, _) => Ok(()),
            (Slot::B, Content::New) => is_committed(&record),
            (Slot::B, content) => Err(format!("slot B boots, which is {content:?}")),
        }
    }

    /// Also the lock that needs no loader: new first bytes mean that all behind them is new, and
    /// old ones that nothing behind them has changed.
    fn content(&self, medium: &Medium) -> Result<Content, String> {
        let image = &self.new.bytes;
        if medium.is_zero(0, HEAD) {
            return Ok(Content::Headless);
        }
        if *medium == self.old {
            return Ok(Content::Old);
        }
        let (mut head, mut old) = (vec![0; HEAD], vec![0; HEAD]);
        medium.read_at(0, &mut head);
        self.old.read_at(0, &mut old);
        let sectors = || head.chunks(512).zip(old.chunks(512)).zip(image.chunks(512));
        let is_zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
        if sectors().any(|((is, _), new)| is == new && !is_zero(is)) {
            if !medium.holds(HEAD, &image[HEAD..]) {
                return Err("the new first bytes are there before what is behind them".to_owned());
            }
            return Ok(if self.new.is_in(medium) { Content::New } else { Content::Torn });
        }
        if sectors().any(|((is, was), _)| is == was && !is_zero(is)) {
            let mut behind = self.old.to_vec();
            behind.drain(..HEAD);
            if !medium.holds(HEAD, &behind) {
                return Err("the old first bytes are still there, and what is behind them is not".to_owned());
            }
        }
        Ok(Content::Torn)
    }

    fn state_files(&mut self, state: &CrashState) -> Result<(Record, LoaderStatus), String> {
        let (data, esp) = (state.directory(&self.machine.data), state.directory(&self.machine.esp));
        if let Some((_, _, record, loader)) =
            self.seen.as_ref().filter(|seen| seen.0 == data && seen.1 == esp)
        {
            return Ok((record.clone(), loader.clone()));
        }
        let left = Machine::left(self.machine, state);
        let record = left.store().load().map_err(|error| error.to_string())?;
        let loader = left.loader().status().map_err(|error| error.to_string())?;
        self.seen = Some((data, esp, record.clone(), loader.clone()));
        Ok((record, loader))
    }

    /// What the record claims of slot B is so.
    fn judge_record(&self, record: &Record, content: Content) -> Result<(), String> {
        let Some(claim) = record.slots.get(Slot::B) else { return Ok(()) };
        let is_new = claim.version == self.new.version;
        let holds = match claim.state {
            SlotContentState::Written => is_new,
            _ if is_new => content == Content::New,
            _ => content == Content::Old,
        };
        if holds { Ok(()) } else { Err(format!("the record says {claim:?}, and slot B is {content:?}")) }
    }
}

/// Nothing new boots that was not read back and committed to.
fn is_committed(record: &Record) -> Result<(), String> {
    let known = record.slots.get(Slot::B).map(|content| content.state.clone());
    let committed = record.attempt.as_ref().map(|attempt| attempt.state.clone());
    match (known, committed) {
        (Some(SlotContentState::Verified), Some(AttemptState::Committed))
        | (Some(SlotContentState::KnownGood), None) => Ok(()),
        other => Err(format!("slot B boots, and the record says {other:?}")),
    }
}
