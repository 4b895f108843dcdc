#![allow(clippy::unwrap_used, missing_docs)]
use super::*;

#[test]
fn a_request_is_signed_only_for_the_identity_it_asks_for() {
    let ca = CertificateAuthority::create("c").unwrap();
    let asked = request(&Identity::Agent("n1".into())).unwrap();
    assert_eq!(request_subject(&asked.pem).unwrap(), ("n1".into(), "trellis:agents".into()));
    ca.sign(&asked.pem, &Identity::Agent("n1".into()), CERTIFICATE_LIFETIME).unwrap();
    for other in
        [Identity::Agent("n2".into()), Identity::Member("n1".into()), Identity::Netd("n1".into()), Identity::admin()]
    {
        let refused = ca.sign(&asked.pem, &other, CERTIFICATE_LIFETIME);
        assert!(matches!(refused, Err(PkiError::Subject { .. })), "{other:?}");
    }
}

#[test]
fn a_signed_certificate_has_the_profiles_names_and_uses() {
    let ca = CertificateAuthority::create("c").unwrap();
    let made = ca.issue(&Identity::Member("n1".into())).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(made.pem.as_bytes()).unwrap();
    let cert = pem.parse_x509().unwrap();
    let san = cert.subject_alternative_name().unwrap().unwrap();
    let names: Vec<_> = san.value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["DNSName(control-plane.trellis)", "DNSName(n1.member.trellis)"]);
    let uses = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(uses.client_auth && uses.server_auth);
    assert!(!cert.is_ca());
    let (from, until) = validity(&made.pem).unwrap();
    assert!(renew_at(&made.pem).unwrap() > from && renew_at(&made.pem).unwrap() < until);
    assert_eq!(fingerprint(ca.certificate_pem()).unwrap().len(), 64);
}

#[test]
fn the_ca_key_survives_sealing_and_needs_its_key() {
    let ca = CertificateAuthority::create("c").unwrap();
    let kek = Key::generate();
    let sealed = ca.seal_key(&kek);
    let back = CertificateAuthority::open(ca.certificate_pem(), &sealed, &kek).unwrap();
    back.issue(&Identity::admin()).unwrap();
    let other = CertificateAuthority::open(ca.certificate_pem(), &sealed, &Key::generate());
    assert!(matches!(other, Err(PkiError::WrongKey { .. })));
}

#[test]
fn a_seal_holds_context_version_and_every_bit() {
    let key = Key::from_hex(&Key::generate().to_hex()).unwrap();
    let sealed = seal(&key, b"Secret/default/a", b"canary");
    assert_eq!(&open(&key, b"Secret/default/a", &sealed).unwrap()[..], b"canary");
    assert!(matches!(open(&key, b"Secret/default/b", &sealed), Err(PkiError::Broken(_))));
    assert!(matches!(open(&key, b"x", &[9; 60]), Err(PkiError::Version(9))));
    for at in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        assert!(open(&key, b"Secret/default/a", &bad).is_err(), "flipped byte {at}");
        assert!(open(&key, b"Secret/default/a", &sealed[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn a_certificate_tells_when_it_was_signed() {
    let ca = CertificateAuthority::create("home").unwrap();
    for lifetime in [Duration::from_secs(600), Duration::from_secs(3 * 3_600), CERTIFICATE_LIFETIME] {
        let before = SystemTime::now();
        let made = ca.issue_for(&Identity::Agent("n1".into()), lifetime).unwrap();
        let signed = signed_at(&made.pem).unwrap();
        let off = signed.duration_since(before).unwrap_or_else(|e| e.duration());
        assert!(off < Duration::from_secs(60), "{lifetime:?}: {off:?} off");
    }
}

#[test]
fn a_renewed_certificate_has_a_serial_number_of_its_own() {
    let ca = CertificateAuthority::create("c").unwrap();
    let identity = Identity::Agent("n1".into());
    let asked = request(&identity).unwrap();
    let serial = || {
        let signed = ca.sign(&asked.pem, &identity, CERTIFICATE_LIFETIME).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).unwrap();
        pem.parse_x509().unwrap().raw_serial().to_vec()
    };
    let (first, second) = (serial(), serial());
    assert_ne!(first, second);
    // Positive, and of at most the 20 bytes that verifiers must take.
    assert!(first.len() <= 20 && first[0] < 0x80, "{first:?}");
}
