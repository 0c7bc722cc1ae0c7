//! The way from one version to another: which images a node boots, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::document::Catalog;
use super::image::{Arch, CatalogImage};
use crate::api::{DowngradePolicy, MAX_HOPS, UpgradeReason};
use crate::version::{Minor, OsVersion};

/// Names at most this many missing minor releases; more say nothing new.
const MAX_MISSING: usize = 8;

/// Why there is no way from one version to another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The target is older, and the policy is [`DowngradePolicy::Refuse`].
    #[error("{to} is older than {from}, which is running; set downgradePolicy: Allow if that is meant")]
    DowngradeRefused {
        /// The running version.
        from: OsVersion,
        /// The target.
        to: OsVersion,
    },
    /// The target belongs to another major release.
    #[error("no path from {from} to {to}: nothing leads across a major release")]
    MajorChange {
        /// The running version.
        from: OsVersion,
        /// The target.
        to: OsVersion,
    },
    /// The target itself is not among the images.
    #[error("no path from {from} to {to}: {}", target_words(to, arch.as_ref(), other_archs))]
    NoTargetImage {
        /// The running version.
        from: OsVersion,
        /// The target.
        to: OsVersion,
        /// The architecture of the node, if one was given.
        arch: Option<Arch>,
        /// Architectures that do have an image of the target.
        other_archs: Vec<Arch>,
    },
    /// Minor releases on the way have no image that could be a hop.
    #[error(
        "no path from {from} to {to}: no usable, unblocked release of {}; add one to the catalog",
        minors(missing)
    )]
    NoUpgradePath {
        /// The running version.
        from: OsVersion,
        /// The target.
        to: OsVersion,
        /// The minor releases without an image; at most eight are named.
        missing: Vec<Minor>,
    },
    /// Every image of some minor release asks for a newer version than can be reached before it.
    #[error("no path from {from} to {to}: {image} may be installed from {min_from} on, and nothing leads there; add a release of {} that does", min_from.minor())]
    MinFromUnreachable {
        /// The running version.
        from: OsVersion,
        /// The target.
        to: OsVersion,
        /// The image that cannot be taken.
        image: OsVersion,
        /// The oldest version that may take it.
        min_from: OsVersion,
    },
    /// More images could be hops than can be kept.
    #[error(
        "{count} images could be hops on the way to {to}, more than the {MAX_HOPS} that are kept; choose a nearer version first"
    )]
    TooManyCandidates {
        /// The target.
        to: OsVersion,
        /// How many there are.
        count: usize,
    },
}

impl PathError {
    /// The reason as conditions tell it.
    #[must_use]
    pub fn reason(&self) -> UpgradeReason {
        match self {
            Self::DowngradeRefused { .. } => UpgradeReason::DowngradeRefused,
            Self::NoTargetImage { other_archs, .. } if !other_archs.is_empty() => {
                UpgradeReason::NoImageForArch
            }
            Self::NoTargetImage { .. } => UpgradeReason::VersionNotInCatalog,
            Self::MajorChange { .. }
            | Self::NoUpgradePath { .. }
            | Self::MinFromUnreachable { .. }
            | Self::TooManyCandidates { .. } => UpgradeReason::NoUpgradePath,
        }
    }
}

/// The images that take a node from one version to another, the next one to boot first and the
/// target last; none if the node is there already.
///
/// `candidates` are usable and unblocked images: [`Catalog::candidates`], or the list frozen from
/// [`hop_candidates`]. The path is the shortest there is, and among those the one through the
/// newest image at each hop: normally the newest patch of each minor release in between. It never
/// skips a minor release, never turns back, and takes an image only from its `minFrom` on, with
/// one more hop within a minor release where that needs it. A pre-release is never a hop, only a
/// target: nobody's nodes should run one without having asked for it. Without `arch` only images
/// for every architecture count: nothing else is known to boot there.
///
/// # Errors
///
/// If there is no such path, or it leads down and `policy` refuses that: see [`PathError`].
///
/// ```
/// use monok8s_sdk::api::DowngradePolicy;
/// use monok8s_sdk::catalog::{Catalog, Limits, path};
///
/// # let checksum = monok8s_sdk::digest::Sha256Digest::of(b"");
/// # let image = |version| format!("  - {{version: {version}, url: 'https://example.com/{version}', checksum: '{checksum}'}}\n");
/// let text = format!("images:\n{}{}{}", image("v1.34.1"), image("v1.34.6"), image("v1.35.1"));
/// let catalog = Catalog::parse(text, &Limits::default())?;
///
/// let (from, to) = ("v1.33.4".parse()?, "v1.35.1".parse()?);
/// let hops = path(&from, &to, &catalog.candidates(), None, DowngradePolicy::Refuse)?;
/// let versions: Vec<_> = hops.iter().map(|hop| hop.version.to_string()).collect();
/// assert_eq!(versions, ["v1.34.6", "v1.35.1"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn path(
    from: &OsVersion,
    to: &OsVersion,
    candidates: &[CatalogImage],
    arch: Option<&Arch>,
    policy: DowngradePolicy,
) -> Result<Vec<CatalogImage>, PathError> {
    if from == to {
        return Ok(Vec::new());
    }
    let (from_owned, to_owned) = (from.clone(), to.clone());
    if to < from && policy == DowngradePolicy::Refuse {
        return Err(PathError::DowngradeRefused { from: from_owned, to: to_owned });
    }
    if from.minor().major != to.minor().major {
        return Err(PathError::MajorChange { from: from_owned, to: to_owned });
    }
    let images = for_arch(candidates, arch);
    let Some(target) = images.get(to) else {
        let other_archs = candidates.iter().filter(|image| image.version == *to);
        let other_archs = other_archs.filter_map(|image| image.arch.clone()).collect();
        return Err(PathError::NoTargetImage {
            from: from_owned,
            to: to_owned,
            arch: arch.cloned(),
            other_archs,
        });
    };
    let stops = stops(from, target, &images);
    let hops = shortest(from, &stops);
    if hops.is_empty() { Err(no_path(from, to, &stops)) } else { Ok(hops.into_iter().cloned().collect()) }
}

/// One image per version: the one for the architecture before the one for every architecture.
fn for_arch<'c>(
    candidates: &'c [CatalogImage],
    arch: Option<&Arch>,
) -> BTreeMap<&'c OsVersion, &'c CatalogImage> {
    let mut images: BTreeMap<_, &CatalogImage> = BTreeMap::new();
    for image in candidates.iter().filter(|image| image.fits(arch)) {
        let best = images.entry(&image.version).or_insert(image);
        if best.arch.is_none() {
            *best = image;
        }
    }
    images
}

/// Where a node may stop between the two versions, in the order of travel, the target last.
fn stops<'c>(
    from: &OsVersion,
    target: &'c CatalogImage,
    images: &BTreeMap<&'c OsVersion, &'c CatalogImage>,
) -> Vec<&'c CatalogImage> {
    let to = &target.version;
    let releases = images.values().copied().filter(|image| !image.version.is_prerelease());
    let mut stops: Vec<_> = if from < to {
        releases.filter(|image| *from < image.version && image.version < *to).collect()
    } else {
        releases.rev().filter(|image| *from > image.version && image.version > *to).collect()
    };
    stops.push(target);
    stops
}

/// Whether a node that runs `version` may install `next`.
fn may_take(version: &OsVersion, next: &CatalogImage) -> bool {
    let (here, there) = (version.minor(), next.version.minor());
    let adjacent = here.major == there.major && here.minor.abs_diff(there.minor) <= 1;
    adjacent && next.min_from.as_ref().is_none_or(|min_from| version >= min_from)
}

/// The shortest way through `stops` to the last one, the newest image first among equals; empty
/// if there is none.
fn shortest<'c>(from: &OsVersion, stops: &[&'c CatalogImage]) -> Vec<&'c CatalogImage> {
    // (stop, hops from there to the target), the target first.
    let mut reaching: Vec<(&CatalogImage, usize)> = Vec::new();
    for stop in stops.iter().rev() {
        if reaching.is_empty() {
            reaching.push((stop, 0));
        } else if let Some((_, hops)) = best_next(&stop.version, &reaching) {
            reaching.push((stop, hops + 1));
        }
    }
    let mut path: Vec<&CatalogImage> = Vec::new();
    let mut next = best_next(from, &reaching);
    while let Some((stop, hops)) = next {
        path.push(stop);
        reaching.retain(|(_, other)| *other < hops);
        next = best_next(&stop.version, &reaching);
    }
    path
}

fn best_next<'c>(
    from: &OsVersion,
    reaching: &[(&'c CatalogImage, usize)],
) -> Option<(&'c CatalogImage, usize)> {
    let takeable = reaching.iter().copied().filter(|(stop, _)| may_take(from, stop));
    takeable.min_by(|(a, a_hops), (b, b_hops)| a_hops.cmp(b_hops).then(b.version.cmp(&a.version)))
}

fn no_path(from: &OsVersion, to: &OsVersion, stops: &[&CatalogImage]) -> PathError {
    let (from_owned, to_owned) = (from.clone(), to.clone());
    let missing = missing_minors(from.minor(), to.minor(), stops);
    if !missing.is_empty() {
        return PathError::NoUpgradePath { from: from_owned, to: to_owned, missing };
    }
    // Every minor release has a stop, so a `minFrom` is in the way: of those next to what can be
    // reached, name the one that asks for least.
    let mut reached = from;
    for stop in stops {
        if may_take(reached, stop) {
            reached = &stop.version;
        }
    }
    let waiting = stops.iter().filter_map(|stop| Some((&stop.version, stop.min_from.as_ref()?)));
    match waiting.filter(|(_, min_from)| *min_from > reached).min_by_key(|(_, min_from)| *min_from) {
        Some((image, min_from)) => PathError::MinFromUnreachable {
            from: from_owned,
            to: to_owned,
            image: image.clone(),
            min_from: min_from.clone(),
        },
        None => PathError::NoUpgradePath { from: from_owned, to: to_owned, missing },
    }
}

fn missing_minors(from: Minor, to: Minor, stops: &[&CatalogImage]) -> Vec<Minor> {
    let present: BTreeSet<Minor> = stops.iter().map(|stop| stop.version.minor()).collect();
    let (low, high) = (from.min(to), from.max(to));
    // Bounded by what is present and what is named, however far apart the two versions are.
    let between = std::iter::successors(Some(low.next()), |minor| Some(minor.next()));
    between
        .take_while(|minor| *minor < high)
        .filter(|minor| !present.contains(minor))
        .take(MAX_MISSING)
        .collect()
}

/// The images to keep for a run, oldest first: with these as `candidates`, [`path`] to `target`
/// gives the same answer as with the whole catalog, from every version whose minor release lies
/// between the oldest and the newest of `current` and `target`.
///
/// Left out are images that no path takes, because a newer one of the same minor release can be
/// taken wherever they can.
///
/// # Errors
///
/// [`PathError::TooManyCandidates`] if more than [`MAX_HOPS`] remain, which takes dozens of
/// minor releases or of `minFrom` levels.
pub fn hop_candidates<'v>(
    catalog: &Catalog,
    current: impl IntoIterator<Item = &'v OsVersion>,
    target: &OsVersion,
) -> Result<Vec<CatalogImage>, PathError> {
    let candidates = catalog.candidates();
    let mut minors: Vec<Minor> = current.into_iter().map(OsVersion::minor).collect();
    minors.push(target.minor());
    let low = minors.iter().min().copied().unwrap_or(target.minor());
    let high = minors.iter().max().copied().unwrap_or(target.minor());

    // A version is kept with the images of all architectures, so that the choice between an image
    // for one architecture and one for all stays what it was.
    let mut kept = BTreeSet::from([target]);
    let mut archs: BTreeSet<Option<&Arch>> = candidates.iter().map(|image| image.arch.as_ref()).collect();
    // Nodes of an architecture that no image names.
    archs.insert(None);
    for arch in archs {
        kept.extend(useful_hops(&for_arch(&candidates, arch), low, high, target));
    }
    let hops: Vec<_> = candidates.iter().filter(|image| kept.contains(&image.version)).cloned().collect();
    if hops.len() > MAX_HOPS {
        return Err(PathError::TooManyCandidates { to: target.clone(), count: hops.len() });
    }
    Ok(hops)
}

/// The versions that can be a hop to `target`: upwards, each that asks for less than all newer
/// ones of its minor release; downwards, the newest of each.
fn useful_hops<'c>(
    images: &BTreeMap<&'c OsVersion, &'c CatalogImage>,
    low: Minor,
    high: Minor,
    target: &OsVersion,
) -> Vec<&'c OsVersion> {
    let mut useful: Vec<&OsVersion> = Vec::new();
    // What the newer images of the minor release ask for at least.
    let mut least: Option<(Minor, Option<&OsVersion>)> = None;
    for (version, image) in images.iter().rev() {
        let minor = version.minor();
        let below = *version < target;
        let in_range = if below { low <= minor } else { target.minor() < minor && minor <= high };
        if version.is_prerelease() || !in_range {
            continue;
        }
        let asks_less = match least {
            Some((of, least)) if of == minor => below && image.min_from.as_ref() < least,
            _ => true,
        };
        if asks_less {
            useful.push(version);
            least = Some((minor, image.min_from.as_ref()));
        }
    }
    useful
}

fn minors(missing: &[Minor]) -> String {
    missing.iter().map(Minor::to_string).collect::<Vec<_>>().join(", ")
}

fn target_words(to: &OsVersion, arch: Option<&Arch>, other_archs: &[Arch]) -> String {
    let mut words = format!("there is no usable, unblocked image of {to}");
    // Writing to a String cannot fail.
    if !other_archs.is_empty() {
        let others: Vec<_> = other_archs.iter().map(Arch::as_str).collect();
        let wanted = arch.map_or("every architecture", Arch::as_str);
        let _ = write!(words, " for {wanted}, only for {}", others.join(", "));
    }
    words
}
