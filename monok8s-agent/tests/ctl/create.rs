use std::fs;
use std::path::Path;

use monok8s_sdk::manifests::{Agent, Controller, to_yaml};

use super::program::ctl;

#[test]
fn the_shipped_manifests_are_what_it_prints() {
    let controller = ctl(&["create", "controller"]).good();
    assert_eq!(controller, to_yaml(&Controller::default().objects()));
    let agent = ctl(&["create", "agent"]).good();
    assert_eq!(agent, to_yaml(&Agent::default().objects()));
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy");
    for (printed, file) in [(controller, "controller.yaml"), (agent, "agent.yaml")] {
        let shipped = fs::read_to_string(deploy.join(file)).unwrap();
        let (_, without_header) = shipped.split_once('\n').unwrap();
        assert!(printed.ends_with(without_header), "{file}");
    }
}

#[test]
fn an_image_a_namespace_and_the_configmaps_are_a_matter_of_flags() {
    let args = ["create", "controller", "--image", "REPO/IMAGE:TAG", "--namespace=ota", "--allow-configmaps"];
    let yaml = ctl(&args).good();
    for expected in
        ["image: REPO/IMAGE:TAG", "imagePullPolicy: IfNotPresent", "namespace: ota", "- configmaps"]
    {
        assert!(yaml.contains(expected), "{expected}");
    }
    for unexpected in ["imagePullPolicy: Never", "mono-system"] {
        assert!(!yaml.contains(unexpected), "{unexpected}");
    }
}

#[test]
fn settings_of_the_agent_are_passed_on() {
    let args = [
        "create",
        "agent",
        "--disk=/dev/vda",
        "--data-dir=/data",
        "--boot-backend=simulated:/data/loader",
        "--pod-checks=shop",
        "--pod-checks=web",
        "--download-rate=20MiB",
        "--disk-rate=50M",
        "--io-pressure=25%",
        "--io-floor=2Mi",
    ];
    let yaml = ctl(&args).good();
    assert!(yaml.contains("namespace: shop") && yaml.contains("namespace: web"), "{yaml}");
    for (name, value) in [
        ("MONOK8S_DISK", "/dev/vda"),
        ("MONOK8S_DATA_DIR", "/data"),
        ("MONOK8S_BOOT_BACKEND", "simulated:/data/loader"),
        ("MONOK8S_DOWNLOAD_RATE", "20MiB"),
        ("MONOK8S_DISK_RATE", "'50000000'"),
        ("MONOK8S_IO_PRESSURE", "'25'"),
        ("MONOK8S_IO_FLOOR", "2MiB"),
    ] {
        assert!(yaml.contains(&format!("- name: {name}\n          value: {value}\n")), "{name}: {yaml}");
    }
    let untold = ctl(&["create", "agent"]).good();
    assert!(!untold.contains("_RATE") && !untold.contains("_IO_"), "{untold}");
    // A bare `off` would be a boolean to kubectl.
    let none = ctl(&["create", "agent", "--disk-rate=none", "--io-pressure=none"]).good();
    for name in ["MONOK8S_DISK_RATE", "MONOK8S_IO_PRESSURE"] {
        assert!(none.contains(&format!("- name: {name}\n          value: none\n")), "{name}: {none}");
    }
}

#[test]
fn what_cannot_be_a_manifest_is_a_usage_error() {
    for wrong in [
        &["create", "controller", "--namespace=Mono System"][..],
        &["create", "controller", "--image="],
        &["create", "controller", "--image=a b"],
        &["create", "agent", "--data-dir=relative"],
        &["create", "agent", "--download-rate=fast"],
        &["create", "agent", "--disk-rate=1000KiB"],
        &["create", "agent", "--io-pressure=100"],
        &["create", "agent", "--io-floor=none"],
        &["create", "everything"],
        &["create"],
    ] {
        ctl(wrong).bad(2);
    }
}
