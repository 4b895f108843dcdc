#![allow(clippy::unwrap_used, missing_docs)]
use std::sync::Arc;

use super::*;

/// Nodes a, b, … by age; each with the nodes that it finds no route to.
fn reports(of: &[(&str, &str)]) -> Reports {
    let reach = |unrouted: &str| Reach {
        network: "10.0.0.0/24".to_owned(),
        unrouted: unrouted.chars().map(|c| (c.to_string(), format!("10.9.9.{}", c as u32))).collect(),
    };
    of.iter().map(|(node, unrouted)| (Arc::from(*node), Arc::new(reach(unrouted)))).collect()
}

/// The nodes that are cut off, and those that only miss some.
fn judged(nodes: &str, of: &[(&str, &str)]) -> (String, String) {
    let ages: Ages = nodes.chars().enumerate().map(|(i, c)| (c.to_string(), i as i64)).collect();
    let (mut cut, mut some) = (String::new(), String::new());
    for node in nodes.chars() {
        match find(&node.to_string(), &reports(of), || ages.clone()) {
            Finding::CutOff(_) => cut.push(node),
            Finding::SomeUnrouted(_) => some.push(node),
            Finding::Routed | Finding::Unknown => {}
        }
    }
    (cut, some)
}

#[test]
fn the_smaller_side_is_cut_off_and_of_equal_ones_the_younger() {
    let cases = [
        ("all is well", "abc", vec![("a", ""), ("b", ""), ("c", "")], ("", "")),
        ("the newcomer of three", "abc", vec![("a", "c"), ("b", "c"), ("c", "ab")], ("c", "ab")),
        ("the eldest of three", "abc", vec![("a", "bc"), ("b", "a"), ("c", "a")], ("a", "bc")),
        ("the newcomer of two", "ab", vec![("a", "b"), ("b", "a")], ("b", "a")),
        ("two and two", "abcd", vec![("a", "cd"), ("b", "cd"), ("c", "ab"), ("d", "ab")], ("cd", "ab")),
        (
            "three subnets of two",
            "abcdef",
            vec![("a", "cdef"), ("b", "cdef"), ("c", "abef"), ("d", "abef"), ("e", "abcd"), ("f", "abcd")],
            ("cdef", "ab"),
        ),
        ("only one of them sees it: a prefix too long", "abc", vec![("a", ""), ("b", ""), ("c", "ab")], ("c", "")),
        ("the others have not spoken yet", "abc", vec![("a", "c")], ("", "a")),
        ("a peer that is no Node any more", "ab", vec![("a", "x"), ("b", "x")], ("", "")),
    ];
    for (what, nodes, of, (cut, some)) in cases {
        assert_eq!(judged(nodes, &of), (cut.to_owned(), some.to_owned()), "{what}");
    }
}

#[test]
fn the_message_names_the_peers_and_says_what_to_do() {
    let ages = || ["a", "b", "c"].iter().zip(0..).map(|(n, age)| ((*n).to_owned(), age)).collect();
    let Finding::CutOff(text) = find("c", &reports(&[("a", "c"), ("b", "c"), ("c", "ab")]), ages) else { panic!() };
    for part in ["from c to the Pods of a (10.9.9.97), b (10.9.9.98)", "10.0.0.0/24", "--advertise-address"] {
        assert!(text.contains(part), "{text}");
    }
    let many: Ages = (0..20).map(|i| (format!("n{i:02}"), i)).collect();
    let unrouted = many.keys().skip(1).map(|n| (n.clone(), "10.1.1.1".to_owned())).collect();
    let all = Reports::from([(Arc::from("n00"), Arc::new(Reach { network: "10.0.0.0/24".into(), unrouted }))]);
    let Finding::SomeUnrouted(text) = find("n00", &all, || many) else { panic!() };
    assert!(text.contains("n08 (10.1.1.1), 11 more"), "{text}");
}
