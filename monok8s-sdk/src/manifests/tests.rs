use serde_json::{Value, json};

use super::*;

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["kind"].as_str().unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pod<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    &of_kind(objects, kind)["spec"]["template"]["spec"]
}

/// Everything that the role of that kind allows, as `verb resource`, sorted.
fn granted(objects: &[Value], kind: &str) -> Vec<String> {
    let words = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap() };
    let mut granted = Vec::new();
    for rule in of_kind(objects, kind)["rules"].as_array().unwrap() {
        for resource in words(&rule["resources"]) {
            granted.extend(words(&rule["verbs"]).iter().map(|verb| format!("{verb} {resource}")));
        }
    }
    granted.sort_unstable();
    granted
}

fn every_object() -> Vec<Value> {
    let controller = Controller { config_maps: ConfigMapCatalogs::Allowed, ..Controller::default() };
    [controller.objects(), Agent::default().objects()].concat()
}

#[test]
fn pods_may_be_listed_only_where_it_was_asked_for() {
    assert!(!granted(&Agent::default().objects(), "ClusterRole").iter().any(|it| it.contains("pods")));
    let shop: Namespace = "shop".parse().unwrap();
    let agent = Agent { pod_checks: [shop].into(), ..Agent::default() }.objects();
    assert_eq!(granted(&agent, "Role"), ["list pods"]);
    let binding = of_kind(&agent, "RoleBinding");
    assert_eq!(binding["metadata"]["namespace"], "shop");
    assert_eq!(binding["subjects"][0]["namespace"], DEFAULT_NAMESPACE);
}

#[test]
fn objects_come_in_the_order_in_which_they_can_be_applied() {
    let crds = ["CustomResourceDefinition"; 3];
    let controller = Controller::default().objects();
    let own = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment"];
    assert_eq!(kinds(&controller), [&["Namespace"], &crds[..], &own[..]].concat());
    let agent = Agent::default().objects();
    let policy = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    let own = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"];
    assert_eq!(
        kinds(&agent),
        [&["Namespace"], &crds[..], &own[..], &policy[..], &policy[..], &["DaemonSet"]].concat()
    );
}

#[test]
fn nothing_in_them_is_null_or_for_the_server_to_write() {
    fn check(path: &str, value: &Value) {
        match value {
            Value::Null => panic!("{path} is null"),
            Value::Object(fields) => {
                for (key, value) in fields {
                    assert_ne!(key, "creationTimestamp", "{path}");
                    check(&format!("{path}.{key}"), value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| check(path, item)),
            Value::String(text) => assert!(!text.contains("${"), "{path}: {text}"),
            _ => {}
        }
    }
    for object in every_object() {
        assert_eq!(object.get("status"), None);
        check(object["kind"].as_str().unwrap(), &object);
    }
}

#[test]
fn no_two_objects_have_one_name_and_all_are_in_the_namespace_that_was_asked_for() {
    let namespace: Namespace = "ota".parse().unwrap();
    let controller = Controller {
        namespace: namespace.clone(),
        config_maps: ConfigMapCatalogs::Allowed,
        ..Controller::default()
    };
    let agent = Agent { namespace, ..Agent::default() };
    let objects = [controller.objects(), agent.own_objects()].concat();
    let mut names: Vec<_> =
        objects.iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "{names:?}");
    let text = Value::from(objects).to_string();
    assert!(!text.contains(DEFAULT_NAMESPACE), "a name that ignores the namespace");
    assert!(text.contains("system:serviceaccount:ota:node-agent"));
}

#[test]
fn the_local_image_runs_only_where_it_is_shipped_and_is_never_pulled() {
    let managed = json!({ "monok8s.io/managed": "true" });
    let local = Controller::default().objects();
    assert_eq!(pod(&local, "Deployment")["nodeSelector"], managed);
    assert_eq!(pod(&local, "Deployment")["containers"][0]["image"], LOCAL_CONTROLLER_IMAGE);
    assert_eq!(pod(&local, "Deployment")["containers"][0]["imagePullPolicy"], "Never");

    let reference = "registry.example.com/monok8s/controller:v1".to_owned();
    let pulled = Controller { image: ImageSource::Registry(reference.clone()), ..Controller::default() };
    let pulled = pulled.objects();
    assert_eq!(pod(&pulled, "Deployment").get("nodeSelector"), None);
    assert_eq!(pod(&pulled, "Deployment")["containers"][0]["image"], reference);
    assert_eq!(pod(&pulled, "Deployment")["containers"][0]["imagePullPolicy"], "IfNotPresent");

    let agent = Agent::default().objects();
    assert_eq!(pod(&agent, "DaemonSet")["nodeSelector"], managed);
    assert_eq!(pod(&agent, "DaemonSet")["containers"][0]["imagePullPolicy"], "Never");
    let agent = Agent { image: ImageSource::Registry(reference), ..Agent::default() }.objects();
    assert_eq!(pod(&agent, "DaemonSet")["nodeSelector"], managed, "an agent has work on managed nodes only");
    assert_eq!(pod(&agent, "DaemonSet")["containers"][0]["imagePullPolicy"], "IfNotPresent");
}

#[test]
fn the_controller_has_no_privilege_on_its_node() {
    let objects = Controller::default().objects();
    let pod = pod(&objects, "Deployment");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(
        container,
        &json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        })
    );
    for absent in ["volumes", "hostNetwork", "hostPID"] {
        assert_eq!(pod.get(absent), None);
    }
    assert_eq!(of_kind(&objects, "Deployment")["spec"]["strategy"], json!({ "type": "Recreate" }));
}

#[test]
fn an_agent_reads_three_kinds_and_its_node_and_writes_two_statuses() {
    let expected = [
        "get nodes",
        "get osnodes",
        "get osupgradeprogresses",
        "get osupgrades",
        "list osupgradeprogresses",
        "list osupgrades",
        "patch osnodes/status",
        "patch osupgradeprogresses/status",
        "watch osupgradeprogresses",
        "watch osupgrades",
    ];
    assert_eq!(granted(&Agent::default().objects(), "ClusterRole"), expected);
}

#[test]
fn the_controller_writes_no_spec_but_that_of_its_orders_and_the_cordon() {
    let objects = Controller::default().objects();
    let mut granted = granted(&objects, "ClusterRole");
    granted.retain(|right| !["get ", "list ", "watch "].iter().any(|verb| right.starts_with(verb)));
    let expected = [
        "create events",
        "create osnodes",
        "create osupgradeprogresses",
        "create pods/eviction",
        "delete osupgradeprogresses",
        "delete pods",
        "patch events",
        "patch nodes",
        "patch osupgradeprogresses",
        "patch osupgradeprogresses/status",
        "patch osupgrades/status",
    ];
    assert_eq!(granted, expected);
    assert_eq!(self::granted(&objects, "Role"), ["create leases", "get leases", "patch leases"]);
}

#[test]
fn configmaps_are_readable_only_when_asked_for_and_only_in_one_namespace() {
    let text = |objects: Vec<Value>| Value::from(objects).to_string();
    assert!(!text(Controller::default().objects()).contains("configmaps"));
    assert!(!text(Agent::default().objects()).contains("configmaps"));
    let allowed = configmap_catalogs(&Namespace::default());
    assert_eq!(kinds(&allowed), ["Role", "RoleBinding"]);
    assert_eq!(
        allowed[0]["rules"],
        json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"] }])
    );
}

#[test]
fn settings_become_environment_variables_and_win() {
    let settings = [("MONOK8S_DATA_DIR", "/data/monok8s"), ("MONOK8S_DISK", "/dev/sda")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let objects = Agent { settings, ..Agent::default() }.objects();
    let pod = pod(&objects, "DaemonSet");
    let environment = pod["containers"][0]["env"].as_array().unwrap();
    let value = |name: &str| environment.iter().find(|entry| entry["name"] == name).unwrap()["value"].clone();
    assert_eq!(value("MONOK8S_DATA_DIR"), "/data/monok8s");
    assert_eq!(value("MONOK8S_DISK"), "/dev/sda");
    assert_eq!(value("MONOK8S_HOST_ROOT"), "/host");
    let mount = &pod["containers"][0]["volumeMounts"][2];
    assert_eq!((&mount["name"], &mount["mountPath"]), (&json!("data"), &json!("/data/monok8s")));
    assert_eq!(pod["volumes"][2]["hostPath"]["path"], "/data/monok8s");
}

#[test]
fn yaml_is_one_stream_of_sorted_documents() {
    let yaml = to_yaml(&[json!({ "kind": "B", "apiVersion": "v1" }), json!({ "kind": "A" })]);
    assert_eq!(yaml, "apiVersion: v1\nkind: B\n---\nkind: A\n");
}

#[test]
fn what_is_not_a_dns_label_is_no_namespace() {
    for text in ["", "Ota", "-ota", "ota-", "o.ta", "o'ta", &"a".repeat(64)] {
        assert!(text.parse::<Namespace>().is_err(), "{text:?}");
    }
    assert_eq!("kube-system2".parse::<Namespace>().unwrap().to_string(), "kube-system2");
}
