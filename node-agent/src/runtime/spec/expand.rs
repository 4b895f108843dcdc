//! `$(VAR)` in commands, arguments and env values, by Kubernetes' rules: `$$(VAR)` is the text
//! `$(VAR)`, a reference to an unknown variable stays as it is.

/// Expands `text` with `env`; of several entries of a name the last counts.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match env.iter().rev().find(|(n, _)| n == name) {
                        Some((_, value)) => out.push_str(value),
                        None => {
                            out.push('$');
                            out.push_str(&rest[..=end]);
                        }
                    }
                    rest = &rest[end + 1..];
                }
                None => out.push('$'),
            },
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn follows_the_table_of_kubernetes_own_tests() {
        let env = [("A", "a"), ("B", "b $(A)"), ("A", "last")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        for (input, want) in [
            ("$(A)", "last"),
            ("x$(A)y$(A)", "xlastylast"),
            ("$(B)", "b $(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$last"),
            ("$$$$(A)", "$$(A)"),
            ("$(NO)", "$(NO)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("cost: 5$", "cost: 5$"),
            ("$()", "$()"),
            ("ü$(A)ü", "ülastü"),
        ] {
            assert_eq!(expand(input, &env), want, "{input}");
        }
    }
}
