//! The command line as a script meets it: exit codes, what is on stdout and what on stderr.

use std::{collections::BTreeMap, fs, process::Stdio};

use serde_json::Value;
use trellis_lab::{backend::Backend, workload::web};

use super::streams::{Running, lines_of};
use crate::{
    cluster::{Cluster, LIMIT, Ran, run},
    harness::Outcome,
};

const DONE: i32 = 0;
const REFUSED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;
const TIMED_OUT: i32 = 124;

/// What is typed, its exit code, and what stdout and stderr contain; none: nothing is there at all.
type Row = (&'static str, i32, &'static [&'static str], &'static [&'static str]);

/// In this order: each finds what those before it left.
const ROWS: &[Row] = &[
    // Objects come and go.
    ("create namespace table", DONE, &["namespace/table created"], &[]),
    ("create namespace table", CONFLICT, &[], &["(AlreadyExists)", "\"table\""]),
    ("create configmap settings --from-literal=colour=green", DONE, &["configmap/settings created"], &[]),
    ("create secret generic keys --from-literal=pw=x -o name", DONE, &["secret/keys\n"], &[]),
    ("create deployment x", USAGE, &[], &["trellis create -f FILE"]),
    ("create", USAGE, &[], &["-f FILE"]),
    ("create -f - < piped", DONE, &["configmap/piped created"], &[]),
    ("create -f - < piped", CONFLICT, &[], &["(AlreadyExists)", "\"piped\""]),
    ("apply -f - < applied", DONE, &["configmap/applied created"], &[]),
    ("apply -f - < applied", DONE, &["configmap/applied unchanged"], &[]),
    ("apply -f - < nonsense", REFUSED, &[], &["stdin", "Nonsense"]),
    ("apply -f {folder}", DONE, &["configmap/one created\nconfigmap/two created\n"], &[]),
    ("apply -f {folder}/absent.yaml", REFUSED, &[], &["absent.yaml"]),
    ("get -f {folder} -o name", DONE, &["configmap/one\nconfigmap/two\n"], &[]),
    ("delete -f {folder}", DONE, &["\"one\" deleted", "\"two\" deleted"], &[]),
    ("delete -f {folder}", NOT_FOUND, &[], &["\"one\" not found", "\"two\" not found"]),
    ("delete -f {folder} --ignore-not-found", DONE, &[], &[]),
    ("delete configmap settings absent", NOT_FOUND, &["\"settings\" deleted"], &["\"absent\" not found"]),
    ("delete configmap", USAGE, &[], &["--all"]),
    // Looking.
    ("get pods", DONE, &["NAME ", "READY", "1/1", "{a}"], &[]),
    ("get pods -o wide", DONE, &["IP ", "NODE ", "10.244."], &[]),
    ("get pods -A", DONE, &["NAMESPACE ", "default "], &[]),
    ("get pods -A -o name", DONE, &["pod/{a}\n", "pod/{b}\n"], &[]),
    ("get pods --no-headers -l app=web", DONE, &["{a}"], &[]),
    ("get deployment web -o yaml", DONE, &["apiVersion: apps/v1\nkind: Deployment\nmetadata:\n", "\nspec:\n"], &[]),
    ("get deployment/web -o name", DONE, &["deployment.apps/web\n"], &[]),
    ("get pods -n table", DONE, &[], &["No resources found in table namespace."]),
    ("get pods --context {context} -o name", DONE, &["pod/{a}\n"], &[]),
    ("get pods --context absent", REFUSED, &[], &["\"absent\"", "{context}"]),
    ("get pod absent", NOT_FOUND, &[], &["(NotFound)", "\"absent\" not found"]),
    ("get pod {a} absent -o name", NOT_FOUND, &["pod/{a}\n"], &["\"absent\" not found"]),
    ("get pod absent --ignore-not-found", DONE, &[], &[]),
    ("get pod {a} -A", USAGE, &[], &["across all namespaces"]),
    ("get nonsense", USAGE, &[], &["\"nonsense\"", "api-resources"]),
    ("get", USAGE, &[], &["you must name the resource"]),
    ("get pods --nonsense", USAGE, &[], &["--nonsense"]),
    ("get pods -o nonsense", USAGE, &[], &["nonsense", "json"]),
    ("nonsense", USAGE, &[], &["nonsense"]),
    ("describe pod {a} absent", NOT_FOUND, &["Name: ", "{a}"], &["\"absent\" not found"]),
    // Who cannot be had holds up nobody else.
    (
        "label pod {a} absent {b} tier=front",
        NOT_FOUND,
        &["pod/{a} labeled\npod/{b} labeled\n"],
        &["\"absent\" not found"],
    ),
    ("get pods -l tier=front -o name", DONE, &["pod/{a}\n", "pod/{b}\n"], &[]),
    ("label pod {a} tier", USAGE, &[], &["at least one label update is required"]),
    ("label pod {a} tier-", DONE, &["pod/{a} unlabeled\n"], &[]),
    ("annotate deploy/web owner=me", DONE, &["deployment.apps/web annotated\n"], &[]),
    ("annotate deploy/web owner=you", REFUSED, &[], &["'owner' already has a value (me)"]),
    ("annotate deploy/web owner-", DONE, &["deployment.apps/web annotated\n"], &[]),
    ("scale deploy absent web --replicas=3", NOT_FOUND, &["deployment.apps/web scaled\n"], &["\"absent\" not found"]),
    ("scale deploy web --replicas=2 --current-replicas=7", REFUSED, &[], &["expected replicas to be 7, was 3"]),
    ("scale deploy web --replicas=2", DONE, &["deployment.apps/web scaled\n"], &[]),
    ("scale pod {a} --replicas=2", USAGE, &[], &["no replicas"]),
    // Waiting.
    ("wait --for=condition=Available deploy/web --timeout=60s", DONE, &["deployment.apps/web condition met\n"], &[]),
    ("wait --for=condition=Available deploy/web --timeout=-1s", DONE, &["deployment.apps/web condition met\n"], &[]),
    ("wait --for=condition=Available deploy/web --timeout -1s", DONE, &["deployment.apps/web condition met\n"], &[]),
    ("wait --for=condition=Nonsense deploy/web --timeout=500ms", TIMED_OUT, &[], &["timed out", "deployment.apps/web"]),
    ("wait --for=condition=Nonsense deploy/web --timeout=0", TIMED_OUT, &[], &["timed out"]),
    ("wait --for=jsonpath={.spec.replicas}=2 deploy/web", DONE, &["deployment.apps/web condition met\n"], &[]),
    (
        "wait --for=condition=Available deploy/absent deploy/web",
        NOT_FOUND,
        &["deployment.apps/web condition met\n"],
        &["\"absent\" not found"],
    ),
    ("wait --for=condition=Available deploy/web --timeout=5x", USAGE, &[], &["\"5x\" is no duration"]),
    ("wait --for=nonsense deploy/web", USAGE, &[], &["expected condition="]),
    ("wait deploy/web", USAGE, &[], &["--for"]),
    // Nodes.
    ("taint nodes n5 table=yes:PreferNoSchedule", DONE, &["node/n5 tainted\n"], &[]),
    ("taint nodes n5 table=no:PreferNoSchedule", REFUSED, &[], &["--overwrite is false"]),
    ("taint node n5 absent table:PreferNoSchedule-", NOT_FOUND, &["node/n5 untainted\n"], &["\"absent\" not found"]),
    ("taint node n5 table-", REFUSED, &[], &["\"table\" not found"]),
    ("taint node n5 table=yes:Never", USAGE, &[], &["EFFECT is NoSchedule"]),
    ("cordon n5 absent", NOT_FOUND, &[], &["\"absent\" not found"]),
    ("uncordon n5", DONE, &["node/n5 already uncordoned\n"], &[]),
    ("cordon n5", DONE, &["node/n5 cordoned\n"], &[]),
    ("cordon n5", DONE, &["node/n5 already cordoned\n"], &[]),
    ("get node n5", DONE, &["Ready,SchedulingDisabled"], &[]),
    ("uncordon n5", DONE, &["node/n5 uncordoned\n"], &[]),
    ("cordon", USAGE, &[], &["name a node"]),
    // Roll-outs.
    ("rollout status deploy/web --timeout=60s", DONE, &["deployment \"web\" successfully rolled out\n"], &[]),
    ("rollout history deploy/web", DONE, &["deployment.apps/web", "REVISION", "\n1 "], &[]),
    ("rollout undo deploy/web", REFUSED, &[], &["unable to find a former revision"]),
    ("rollout pause deploy web absent", NOT_FOUND, &["deployment.apps/web paused\n"], &["\"absent\" not found"]),
    ("rollout pause deploy/web", REFUSED, &[], &["already paused"]),
    ("rollout restart deploy/web", REFUSED, &[], &["trellis rollout resume deployment/web"]),
    ("rollout resume deploy/web", DONE, &["deployment.apps/web resumed\n"], &[]),
    ("rollout restart deploy/web", DONE, &["deployment.apps/web restarted\n"], &[]),
    ("rollout status deploy/web --timeout=1m30s", DONE, &["successfully rolled out\n"], &[]),
    ("rollout history deploy/web", DONE, &["\n1 ", "\n2 "], &[]),
    ("rollout undo deploy/web", DONE, &["deployment.apps/web rolled back to revision 1\n"], &[]),
    ("rollout undo deploy/web --to-revision=99", REFUSED, &[], &["unable to find revision 99"]),
    ("rollout status deploy/web --timeout=90s", DONE, &["successfully rolled out\n"], &[]),
    ("rollout history deploy/web", DONE, &["\n2 ", "\n3 "], &[]),
    ("rollout status deploy/absent", NOT_FOUND, &[], &["\"absent\" not found"]),
    ("rollout status node/n1", USAGE, &[], &["name a deployment"]),
    // What needs no object.
    ("api-resources", DONE, &["NAME ", "deployments ", "apps/v1 ", "Deployment\n"], &[]),
    ("api-resources --namespaced=false -o name", DONE, &["nodes\n"], &[]),
    ("completion bash", DONE, &["_trellis"], &[]),
    ("completion nonsense", USAGE, &[], &["nonsense"]),
    ("version", DONE, &["Client Version: ", "Server Version: "], &[]),
    ("version --client -o json", DONE, &["\"clientVersion\""], &[]),
    ("--help", DONE, &["Exit codes: "], &[]),
    // Contexts, in a file of their own.
    ("config current-context --config {config}", DONE, &["{context}\n"], &[]),
    ("config get-contexts --config {config}", DONE, &["CURRENT ", "{context}", "unix://"], &[]),
    ("config view --config {config}", DONE, &["key: REDACTED"], &[]),
    ("config set-context --current --namespace=table --config {config}", DONE, &["modified"], &[]),
    ("get pods --config {config}", DONE, &[], &["No resources found in table namespace."]),
    ("get pods --config {config} -n default -o name", DONE, &["pod/"], &[]),
    ("config use-context absent --config {config}", REFUSED, &[], &["\"absent\"", "{context}"]),
    ("config use-context {context} --config {config}", DONE, &["Switched to context \"{context}\".\n"], &[]),
    ("config delete-context {context} --config {config}", DONE, &["deleted context {context}"], &[]),
    ("config current-context --config {config}", REFUSED, &[], &["current-context is not set"]),
    ("get pods --config {config}", REFUSED, &[], &["no context is current"]),
    ("delete namespace table", DONE, &["\"table\" deleted"], &[]),
    ("delete configmap/piped configmap/applied secret/keys", DONE, &["\"keys\" deleted"], &[]),
];

fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  colour: green\n")
}

pub fn table(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 2).to_string());
    let pods = cluster.wait_ready("default", "app=web", 2);
    let folder = cluster.folder().join("manifests");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.yaml"), config_map("one")).unwrap();
    fs::write(folder.join("b.yml"), config_map("two")).unwrap();
    fs::write(folder.join("notes.txt"), "no manifest").unwrap();
    let config = cluster.folder().join("config-of-the-table.json");
    fs::copy(cluster.lab.layout().contexts(), &config).unwrap();
    let words = BTreeMap::from([
        ("{a}", pods[0].name.clone()),
        ("{b}", pods[1].name.clone()),
        ("{context}", cluster.lab.context()),
        ("{folder}", folder.display().to_string()),
        ("{config}", config.display().to_string()),
    ]);
    let filled = |text: &str| words.iter().fold(text.to_owned(), |text, (name, word)| text.replace(name, word));
    let stdins = BTreeMap::from([
        ("piped", config_map("piped")),
        ("applied", config_map("applied")),
        ("nonsense", "apiVersion: v1\nkind: Nonsense\nmetadata:\n  name: x\n".to_owned()),
    ]);
    let mut wrong = Vec::new();
    for (typed, code, out, err) in ROWS {
        let typed = filled(typed);
        let (typed, stdin) = typed.split_once(" < ").map_or((typed.as_str(), None), |(t, s)| (t, Some(s)));
        let args: Vec<&str> = typed.split(' ').collect();
        let mut command = cluster.trellis_command(&args);
        if let Some(name) = stdin {
            let path = cluster.folder().join("stdin");
            fs::write(&path, &stdins[name]).unwrap();
            command.stdin(fs::File::open(path).unwrap());
        }
        let ran = run(&mut command, LIMIT * 2);
        let fits = |said: &str, wanted: &[&str]| {
            let all = wanted.iter().all(|w| said.contains(&filled(w)));
            all && wanted.is_empty() == said.is_empty() && !said.contains('\x1b')
        };
        if ran.code != *code || !fits(&ran.stdout, out) || !fits(&ran.stderr, err) {
            wrong.push(format!("trellis {typed}: wanted {code}, {out:?}, {err:?}: {ran:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
    whole_objects(cluster);
    watch(cluster);
    Outcome::Passed
}

/// Each item of a List is an object by itself.
fn whole_objects(cluster: &Cluster) {
    for (kind, plural) in [("Pod", "pods"), ("Deployment", "deployments"), ("Node", "nodes")] {
        let list: Value = serde_json::from_str(&cluster.trellis(&["get", plural, "-o", "json"]).ok()).unwrap();
        assert_eq!((&list["apiVersion"], &list["kind"]), (&"v1".into(), &"List".into()));
        let items = list["items"].as_array().unwrap();
        assert!(!items.is_empty(), "{plural}");
        for item in items {
            assert_eq!(item["kind"], kind, "{item}");
            let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
            assert_eq!(item["apiVersion"], version, "{item}");
            for part in ["metadata", "spec", "status"] {
                assert!(item[part].as_object().is_some_and(|o| !o.is_empty()), "{plural} without {part}: {item}");
            }
        }
    }
}

/// What is there, and then each change as it comes.
fn watch(cluster: &Cluster) {
    let mut command = cluster.trellis_command(&["get", "deployments", "-w"]);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(child.0.stdout.take().unwrap());
    let expect = |what: &str| loop {
        let line = lines.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("no line with {what:?}: {e}"));
        if line.contains(what) {
            return line;
        }
    };
    assert!(expect("NAME").contains("UP-TO-DATE"));
    assert!(expect("web").contains("2/2"));
    cluster.trellis(&["scale", "deploy", "web", "--replicas=3"]).ok();
    assert!(expect("/3").starts_with("web "));
    expect("3/3");
    let said: Ran = cluster.trellis(&["get", "pods,deployments", "-w"]);
    assert_eq!((said.code, said.stdout.as_str()), (USAGE, ""), "{said:?}");
}
