use proptest::prelude::*;

use super::*;
use crate::boot::changes_fixture::{armed, both_good, fell_back, invalidated, token, tried};
use crate::boot::{AttemptId, Reverter, SlotHealth, Tries, TryCounting};
use crate::slot::Slot;

fn environment(text: &[&str]) -> Environment {
    let mut bytes = text.join("\0").into_bytes();
    bytes.extend([0, 0]);
    let crc = crc32fast::hash(&bytes).to_le_bytes();
    Environment::decode(&[crc.as_slice(), &bytes].concat(), Layout::Single).unwrap().environment
}

const FACTORY: [&str; 5] =
    ["BOOT_ORDER=A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0", "ethaddr=02:00:00:00:00:01", "odd"];

#[test]
fn what_nobody_asked_for_stays_byte_for_byte_and_in_order() {
    let mut changed =
        environment(&["z=\u{fc}", "BOOT_ORDER=A B", "no sign", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0", "a==b"]);
    variables::put(&mut changed, &armed()).unwrap();
    let expected = [
        "z=\u{fc}",
        "BOOT_ORDER=B A",
        "no sign",
        "BOOT_A_LEFT=3",
        "BOOT_B_LEFT=1",
        "a==b",
        "MONOK8S_COUNTS=1",
        "MONOK8S_TRIAL=B:7:1:none",
    ];
    assert_eq!(changed, environment(&expected));
}

#[test]
fn a_name_that_is_there_twice_has_its_last_value_and_is_set_once() {
    let mut twice = environment(&["x=1", "BOOT_ORDER=A", "x=2", "xx=3"]);
    assert_eq!(twice.get("x"), Some(b"2".as_slice()));
    twice.set("x", Some("4"));
    assert_eq!(twice, environment(&["x=4", "BOOT_ORDER=A", "xx=3"]));
    twice.set("x", None);
    twice.set("xx", Some(""));
    assert_eq!(twice, environment(&["BOOT_ORDER=A"]));
}

#[test]
fn a_copy_is_refused_for_any_flipped_bit_but_those_of_its_serial_number() {
    let whole = environment(&FACTORY).encode(256, Layout::Redundant, 9).unwrap();
    assert_eq!(Environment::decode(&whole, Layout::Redundant).unwrap().serial, 9);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let decoded = Environment::decode(&bytes, Layout::Redundant);
        assert_eq!(decoded.is_ok(), bit / 8 == 4, "bit {bit}");
    }
}

#[test]
fn another_size_and_another_layout_are_wrong_checksums() {
    let redundant = environment(&FACTORY).encode(256, Layout::Redundant, 1).unwrap();
    let single = environment(&FACTORY).encode(256, Layout::Single, 1).unwrap();
    for (bytes, layout) in [
        (&redundant[..255], Layout::Redundant),
        (&[redundant.as_slice(), &[0]].concat(), Layout::Redundant),
        (&redundant, Layout::Single),
        (&single, Layout::Redundant),
    ] {
        assert_eq!(Environment::decode(bytes, layout), Err(Flaw::Checksum));
    }
    assert_eq!(Environment::decode(&[0; 3], Layout::Redundant), Err(Flaw::TooShort));
    let endless = [crc32fast::hash(b"a=b\0").to_le_bytes().as_slice(), b"a=b\0"].concat();
    assert_eq!(Environment::decode(&endless, Layout::Single), Err(Flaw::NoEnd));
    assert!(environment(&FACTORY).encode(64, Layout::Redundant, 1).is_err());
}

#[test]
fn of_two_whole_copies_the_newer_counts_as_u_boot_says() {
    let copy = |serial| environment(&FACTORY).encode(128, Layout::Redundant, serial).unwrap();
    for (first, second, second_counts) in [
        (1, 2, true),
        (2, 1, false),
        (7, 7, false),
        (255, 0, true),
        (0, 255, false),
        (254, 255, true),
        (0, 1, true),
        (250, 3, false),
    ] {
        let (first_copy, second_copy) = (copy(first), copy(second));
        let (is_second, whole) = choose([Ok(&first_copy), Ok(&second_copy)]).unwrap();
        assert_eq!(
            (is_second, whole.serial),
            (second_counts, first.max(second) * u8::from(first.abs_diff(second) < 255)),
            "{first} {second}"
        );
    }
    let (mut torn, whole) = (copy(9), copy(1));
    torn[100] ^= 1;
    assert!(!choose([Ok(&whole), Ok(&torn)]).unwrap().0);
    assert!(choose([Err(Flaw::Unreadable), Ok(&whole)]).unwrap().0);
    assert_eq!(choose([Ok(&torn), Err(Flaw::Unreadable)]), Err([Flaw::Checksum, Flaw::Unreadable]));
}

#[test]
fn the_state_is_what_it_was_after_a_round_through_the_variables() {
    let ended = tried().reverted(Reverter::Person);
    for status in [both_good(), invalidated(), armed(), tried(), fell_back(), ended] {
        let mut changed = environment(&FACTORY);
        variables::put(&mut changed, &status).unwrap();
        assert_eq!(variables::status(&changed), Ok(status));
    }
    let mut six = both_good();
    six.tries_full = Tries(6);
    let mut changed = environment(&FACTORY);
    variables::put(&mut changed, &six).unwrap();
    assert_eq!(
        (changed.get("MONOK8S_TRIES"), variables::status(&changed).unwrap()),
        (Some(b"6".as_slice()), six)
    );
}

#[test]
fn what_raucs_script_and_setexpr_leave_is_understood() {
    let read = |text: &[&str]| variables::status(&environment(text)).unwrap();
    let stock = read(&["BOOT_ORDER=B A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=2"]);
    assert_eq!(
        (stock.order.as_slice(), stock.b.tries_left, stock.tries_full),
        ([Slot::B, Slot::A].as_slice(), Tries(2), Tries(3))
    );
    assert_eq!((stock.counting_seen, stock.try_counting()), (TryCounting::Unsupported, TryCounting::Proven));
    let hexadecimal = read(&["BOOT_ORDER=A", "BOOT_A_LEFT=0xa", "BOOT_B_LEFT=1f"]);
    assert_eq!((hexadecimal.a.tries_left, hexadecimal.b.tries_left), (Tries(10), Tries(31)));
    assert_eq!((hexadecimal.b.health, hexadecimal.next_boot()), (SlotHealth::Bad, Some(Slot::A)));
    // A slot that was never installed has no counter yet.
    assert_eq!(read(&["BOOT_ORDER=A", "BOOT_A_LEFT=1"]).b.tries_left, Tries::NONE);
}

#[test]
fn variables_that_mean_nothing_are_errors_that_name_them() {
    let good = ["BOOT_ORDER=A B", "BOOT_A_LEFT=3", "BOOT_B_LEFT=3"];
    for (bad, name) in [
        ("BOOT_ORDER=A C", "BOOT_ORDER"),
        ("BOOT_ORDER=A A", "BOOT_ORDER"),
        ("BOOT_ORDER=a", "BOOT_ORDER"),
        ("BOOT_ORDER= ", "BOOT_ORDER"),
        ("BOOT_A_LEFT=x", "BOOT_A_LEFT"),
        ("BOOT_B_LEFT=100", "BOOT_B_LEFT"),
        ("BOOT_B_LEFT=+1", "BOOT_B_LEFT"),
        ("MONOK8S_TRIES=0", "MONOK8S_TRIES"),
        ("MONOK8S_TRIES=a", "MONOK8S_TRIES"),
        ("MONOK8S_TRIES=10", "MONOK8S_TRIES"),
        ("MONOK8S_COUNTS=yes", "MONOK8S_COUNTS"),
        ("MONOK8S_TRIAL=B", "MONOK8S_TRIAL"),
    ] {
        let error = variables::status(&environment(&[good.as_slice(), &[bad]].concat())).unwrap_err();
        assert!(error.to_string().contains(name), "{bad}: {error}");
    }
    for missing in 0..2 {
        let mut text = good.to_vec();
        let name = text.remove(missing).split('=').next().unwrap();
        let error = variables::status(&environment(&text)).unwrap_err();
        assert!(matches!(&error, VariableError::Missing { name: found } if *found == name), "{error}");
    }
    let nothing = invalidated().invalidated(Slot::A);
    assert_eq!(variables::put(&mut environment(&FACTORY), &nothing), Err(VariableError::EmptyOrder));
}

/// A host with an environment in a file, whose copies are written by hand.
fn host(config: &str, file: &[u8]) -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    for dir in ["etc", "boot", "run/lock"] {
        fs::create_dir_all(host.path().join(dir)).unwrap();
    }
    fs::write(host.path().join("etc/fw_env.config"), config).unwrap();
    fs::write(host.path().join("boot/uboot.env"), file).unwrap();
    host
}

fn open(host: &tempfile::TempDir, redundancy: Redundancy) -> Result<UbootEnv, UbootError> {
    UbootEnv::from_config(host.path(), "etc/fw_env.config", redundancy)
}

const TWO: &str = "/boot/uboot.env 0 0x200\n/boot/uboot.env -0x200 0x200\n";

#[test]
fn a_configured_environment_is_changed_and_nothing_else_of_its_file() {
    let copy = |serial| environment(&FACTORY).encode(512, Layout::Redundant, serial).unwrap();
    let file = [copy(4), vec![7; 1000], copy(3)].concat();
    let host = host(TWO, &file);
    assert!(UbootEnv::detect(host.path(), "etc/fw_env.config"));
    assert!(!UbootEnv::detect(host.path(), "etc/other.config"));
    let loader = open(&host, Redundancy::Required).unwrap();
    let _lock = loader.exclusive().unwrap();
    loader.write(&both_good()).unwrap();
    assert_eq!(loader.status().unwrap(), both_good());
    let changed = fs::read(host.path().join("boot/uboot.env")).unwrap();
    assert_eq!((changed.len(), &changed[512..1512]), (file.len(), &file[512..1512]));
    // The older copy first: it got 5, the other one 6.
    assert_eq!((changed[4], changed[1512 + 4]), (6, 5));
    assert_eq!(changed[5..512], changed[1517..]);
}

#[test]
fn a_running_fw_setenv_is_waited_for() {
    let copy = environment(&FACTORY).encode(512, Layout::Redundant, 4).unwrap();
    let host = host(TWO, &[copy.as_slice(), &copy].concat());
    let loader = open(&host, Redundancy::Required).unwrap();
    let file = File::create(host.path().join(TOOLS_LOCK)).unwrap();
    let setting = RegionLock::on(file).unwrap();
    let other = loader.clone();
    let change = std::thread::spawn(move || other.arm_trial(token(), AttemptId(7), Tries::TRIAL));
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert!(!change.is_finished() && loader.status().unwrap().trial.is_none());
    drop(setting);
    change.join().unwrap().unwrap();
    // Without a directory for the lock there is nobody to wait for.
    fs::remove_dir_all(host.path().join("run")).unwrap();
    loader.confirm().unwrap();
    assert_eq!(loader.status().unwrap().order, [Slot::B, Slot::A]);
}

#[test]
fn a_single_copy_is_used_only_if_that_was_said() {
    let host =
        host("/boot/uboot.env 0 0x200\n", &environment(&FACTORY).encode(512, Layout::Single, 0).unwrap());
    assert!(matches!(open(&host, Redundancy::Required), Err(UbootError::SingleCopy { .. })));
    let loader = open(&host, Redundancy::SingleCopyAllowed).unwrap();
    loader.write(&both_good()).unwrap();
    assert_eq!(loader.status().unwrap(), both_good());
    fs::write(host.path().join("boot/uboot.env"), [0xFF; 512]).unwrap();
    let error = crate::causes::chain(&loader.status().unwrap_err());
    assert!(error.contains("damaged (wrong checksum"), "{error}");
}

#[test]
fn damaged_copies_are_named_and_stay_as_they_are() {
    let host = host(TWO, &[0xFF; 1024]);
    let loader = open(&host, Redundancy::Required).unwrap();
    assert!(matches!(loader.write(&both_good()), Err(UbootError::BothDamaged { .. })));
    let error = crate::causes::chain(&loader.mark_good(Slot::A).unwrap_err());
    assert!(
        error.contains("boot/uboot.env at 0x0: wrong checksum") && error.contains("at 0x200: wrong"),
        "{error}"
    );
    assert_eq!(fs::read(host.path().join("boot/uboot.env")).unwrap(), [0xFF; 1024]);
}

#[test]
fn places_that_cannot_hold_an_environment_are_refused() {
    let refused = |config: &str| open(&host(config, &[0; 1024]), Redundancy::Required).unwrap_err();
    let with = |second: &str| format!("/boot/uboot.env 0 0x200\n{second}\n");
    assert!(matches!(refused(&with("/boot/uboot.env 0x1ff 0x200")), UbootError::Overlap { .. }));
    assert!(matches!(refused(&with("/boot/../boot/uboot.env 0x10 0x200")), UbootError::Overlap { .. }));
    assert!(matches!(refused(&with("/boot/uboot.env 0x201 0x200")), UbootError::Beyond { size: 1024, .. }));
    assert!(matches!(refused(&with("/boot/uboot.env -0x401 0x200")), UbootError::Beyond { .. }));
    assert!(matches!(refused(&with("/boot/other.env 0 0x200")), UbootError::Open { .. }));
    assert!(matches!(refused(&with("/boot 0 0x200")), UbootError::NotStorage { .. }));
    assert!(matches!(refused("nothing of use"), UbootError::Config { .. }));
    let large = "#".repeat(70_000);
    assert!(matches!(refused(&large), UbootError::Open { .. }));
    // What answers to it here is a character device, as flash is.
    let config = host("/dev/null 0 0x200\n/dev/null 0x200 0x200\n", &[]);
    let error =
        UbootEnv::from_config(Path::new("/"), config.path().join("etc/fw_env.config"), Redundancy::Required);
    assert!(matches!(error, Err(UbootError::Flash { .. })), "{error:?}");
}

proptest! {
    #[test]
    fn whatever_is_set_is_read(names in proptest::collection::vec("[a-z]{1,4}", 0..12), values in proptest::collection::vec("[ -~]{1,9}", 12), attempt in any::<u64>()) {
        let mut environment = environment(&FACTORY);
        for (name, value) in names.iter().zip(&values) {
            environment.set(name, Some(value));
        }
        let status = invalidated().armed(Slot::B, AttemptId(attempt), Tries(9));
        variables::put(&mut environment, &status).unwrap();
        let bytes = environment.encode(1024, Layout::Redundant, 0).unwrap();
        let read = Environment::decode(&bytes, Layout::Redundant).unwrap().environment;
        prop_assert_eq!(variables::status(&read), Ok(status));
        prop_assert_eq!(read, environment);
    }
}
