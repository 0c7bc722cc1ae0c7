use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::resume::Answer;
use super::*;

fn identity(etag: &str) -> Identity {
    Identity::of(&Answer { etag: Some(etag.into()), ..Answer::default() })
}

fn no_ranges() -> Seen {
    Seen::NoRanges("whole".into())
}

fn after(count: usize, seen: &[(usize, Seen)]) -> Mirrors {
    let mut mirrors = Mirrors::new(count);
    for (mirror, seen) in seen {
        mirrors.saw(*mirror, seen.clone());
    }
    mirrors
}

/// Who is asked for a part, and for the rest of a file that was begun: a mirror's number, `whole`, or
/// `nobody`.
fn check(name: &str, mirrors: &Mirrors, part: &str, rest: &str) {
    let said = |next| match next {
        Next::Ask(mirror) => mirror.to_string(),
        Next::OnlyWhole { .. } => "whole".into(),
        Next::Nobody => "nobody".into(),
    };
    let found = (said(mirrors.next(Need::Part, &[])), said(mirrors.next(Need::Rest { from: 9 }, &[])));
    assert_eq!(found, (part.into(), rest.into()), "{name}");
}

#[test]
fn what_one_request_found_out_decides_for_the_next() {
    let failed = |before| Seen::Failed { before };
    let gone = || Seen::Useless(Fault::NotFound(404));
    let came = |bytes, seconds| Seen::Came { bytes, waited: Duration::from_secs(seconds) };
    let down = |mirror| [0, 1, 2].map(|before| (mirror, failed(before)));
    for (name, seen, part, rest) in [
        ("nothing is known", vec![], "0", "0"),
        ("the first is down", vec![(0, failed(0))], "1", "1"),
        ("both are down", vec![(0, failed(0)), (1, failed(0))], "0", "0"),
        (
            "both are down, the first for longer",
            vec![(0, failed(0)), (0, failed(1)), (1, failed(0))],
            "1",
            "1",
        ),
        ("it came back", vec![(0, failed(0)), (1, failed(0)), (1, came(1, 0))], "1", "1"),
        ("headers, and nothing behind them", vec![(0, failed(0)), (0, came(0, 1))], "1", "1"),
        ("requests that fail at once", vec![(0, failed(0)), (0, failed(0)), (1, failed(0))], "0", "0"),
        ("the first has no such file", vec![(0, gone())], "1", "1"),
        ("nobody has it", vec![(0, gone()), (1, gone())], "nobody", "nobody"),
        ("the first sends no parts", vec![(0, no_ranges())], "1", "1"),
        ("nobody sends parts", vec![(0, no_ranges()), (1, no_ranges())], "whole", "0"),
        ("one sends no parts, one is gone", vec![(0, gone()), (1, no_ranges())], "whole", "1"),
        ("one sends no parts, one failed", vec![(0, failed(0)), (1, no_ranges())], "0", "1"),
        ("one sends no parts, one is down", [&down(0)[..], &[(1, no_ranges())]].concat(), "whole", "1"),
        ("wrong bytes", vec![(0, Seen::WrongBytes)], "1", "1"),
        ("wrong bytes, and nobody else is up", vec![(0, Seen::WrongBytes), (1, failed(0))], "0", "1"),
        ("wrong bytes, and nobody else is left", vec![(0, Seen::WrongBytes), (1, gone())], "0", "0"),
        (
            "the same file",
            vec![(0, Seen::Answered(identity("a"))), (0, Seen::Answered(identity("a")))],
            "0",
            "0",
        ),
        (
            "another file",
            vec![(0, Seen::Answered(identity("a"))), (0, Seen::Answered(identity("b")))],
            "1",
            "1",
        ),
        ("slow", vec![(0, came(100_000, 6))], "1", "1"),
        ("not seen for long enough", vec![(0, came(10_000, 4))], "0", "0"),
        ("fast enough", vec![(0, came(1_000_000, 6))], "0", "0"),
        ("the other one is as slow", vec![(0, came(100_000, 6)), (1, came(150_000, 6))], "0", "0"),
        ("the other one is faster", vec![(0, came(100_000, 6)), (1, came(900_000, 6))], "1", "1"),
    ] {
        check(name, &after(2, &seen), part, rest);
    }
}

#[test]
fn the_mirror_to_blame_is_the_one_that_may_mend_itself_or_the_last() {
    let useless = |fault| Seen::Useless(fault);
    let mirrors = after(3, &[(2, useless(Fault::NotFound(404))), (0, useless(Fault::Forbidden(403)))]);
    assert_eq!(mirrors.useless(), Some((0, &Fault::Forbidden(403))));
    let mut mirrors = mirrors;
    mirrors.saw(1, useless(Fault::Other));
    mirrors.saw(2, useless(Fault::NotFound(410)));
    assert_eq!(mirrors.useless(), Some((1, &Fault::Other)));
    assert_eq!(Mirrors::new(1).useless(), None);
}

#[test]
fn whoever_is_excepted_is_not_asked() {
    let mirrors = after(2, &[(1, no_ranges())]);
    assert!(matches!(mirrors.next(Need::Part, &[0]), Next::OnlyWhole { mirror: 1, .. }));
    assert_eq!(mirrors.next(Need::Part, &[0, 1]), Next::Nobody);
    assert_eq!(Mirrors::new(0).next(Need::Part, &[]), Next::Nobody);
}

/// What a mirror is, which only requests find out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Nature {
    Good,
    Down,
    Gone,
    Whole,
    /// Sends wrong bytes for one frame in so many.
    Flips(usize),
    /// Every other request fails.
    Flaky,
}

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        Just(Nature::Good),
        Just(Nature::Down),
        Just(Nature::Gone),
        Just(Nature::Whole),
        (1_usize..4).prop_map(Nature::Flips),
        Just(Nature::Flaky),
    ]
}

/// How a download of frames, one by one, ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Right,
    /// By the mirror that has all of it.
    Whole,
    /// No mirror is left for this frame.
    Lost(usize),
    /// It would be tried until the deadline.
    GoesOn,
}

/// The end, and the requests: mirror, frame, and whether the frame came from it.
fn simulate(natures: &[Nature], frames: usize) -> (End, Vec<(usize, usize, bool)>) {
    let mut mirrors = Mirrors::new(natures.len());
    let mut requests = Vec::new();
    for frame in 0..frames {
        let mut except = Vec::new();
        loop {
            let mirror = match mirrors.next(Need::Part, &except) {
                Next::Ask(mirror) => mirror,
                Next::OnlyWhole { .. } => return (End::Whole, requests),
                Next::Nobody => return (End::Lost(frame), requests),
            };
            if requests.len() > 500 {
                return (End::GoesOn, requests);
            }
            let before = mirrors.failures(mirror);
            let came = match &natures[mirror] {
                Nature::Down => Err(Seen::Failed { before }),
                Nature::Flaky if requests.len() % 2 == 0 => Err(Seen::Failed { before }),
                Nature::Gone => Err(Seen::Useless(Fault::NotFound(404))),
                Nature::Whole => Err(no_ranges()),
                Nature::Flips(every) => Ok(frame % every != 0),
                Nature::Good | Nature::Flaky => Ok(true),
            };
            requests.push((mirror, frame, came.is_ok()));
            match came {
                Err(seen) => mirrors.saw(mirror, seen),
                Ok(is_right) => {
                    mirrors.saw(mirror, Seen::Came { bytes: 1, waited: Duration::ZERO });
                    if is_right {
                        break;
                    }
                    mirrors.saw(mirror, Seen::WrongBytes);
                    except.push(mirror);
                }
            }
        }
    }
    (End::Right, requests)
}

proptest! {
    #[test]
    fn every_download_ends_as_well_as_its_mirrors_allow(natures in proptest::collection::vec(nature(), 1..5)) {
        let frames = 20;
        let (end, requests) = simulate(&natures, frames);
        let has = |wanted: &Nature| natures.contains(wanted);
        if has(&Nature::Good) {
            prop_assert_eq!(&end, &End::Right);
        }
        if has(&Nature::Whole) {
            prop_assert!(matches!(end, End::Right | End::Whole), "{:?}", end);
        }
        if let End::Lost(frame) = end {
            // Everyone who could have had it sent it wrong.
            let can = |nature: &Nature| match nature {
                Nature::Gone => true,
                Nature::Flips(every) => frame % every == 0,
                _ => false,
            };
            prop_assert!(natures.iter().all(can));
        }
        if end == End::GoesOn {
            // Only because of somebody who may come back.
            prop_assert!(has(&Nature::Down));
        }
        let mut asked: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (mirror, frame, came) in &requests {
            *asked.entry((*mirror, *frame)).or_default() += usize::from(*came);
        }
        prop_assert!(asked.values().all(|times| *times <= 1), "a frame came twice from one mirror");
        let of = |mirror: usize| requests.iter().filter(|request| request.0 == mirror).count();
        for (mirror, nature) in natures.iter().enumerate() {
            match nature {
                Nature::Gone | Nature::Whole => prop_assert!(of(mirror) <= 1, "found out more than once"),
                // While others are up it is not asked again.
                Nature::Down if has(&Nature::Good) => prop_assert!(of(mirror) <= 1),
                _ => {}
            }
        }
    }
}
