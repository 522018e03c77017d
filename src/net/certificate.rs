//! What is read out of an X.509 certificate: names, validity, and the hash that channel binding uses.
//!
//! Verifying signatures and chains is rustls's job.

use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Encode, Reader, SliceReader, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// Signature and digest algorithms that use SHA-384; and SHA-512 below. Those with MD5 or SHA-1 count as SHA-256.
const WITH_SHA384: [ObjectIdentifier; 3] = [
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"),
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"),
    ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"),
];
const WITH_SHA512: [ObjectIdentifier; 3] = [
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"),
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"),
    ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"),
];
/// MD5, SHA-1 and SHA-256 with RSA; SHA-1 and SHA-256 with ECDSA; SHA-1 and SHA-256 themselves.
const WITH_SHA256_OR_OLDER: [ObjectIdentifier; 7] = [
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"),
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"),
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"),
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"),
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"),
    ObjectIdentifier::new_unwrap("1.3.14.3.2.26"),
    ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"),
];

/// The `tls-server-end-point` binding of a certificate (RFC 5929 section 4.1): its hash by the algorithm of its
/// signature. `None` where that is undefined, as for Ed25519.
pub fn end_point_hash(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    let algorithm = &certificate.signature_algorithm;
    let oid = if algorithm.oid == RSASSA_PSS {
        pss_digest(AnyRef::from(algorithm.parameters.as_ref()?))?
    } else {
        algorithm.oid
    };
    if WITH_SHA256_OR_OLDER.contains(&oid) {
        Some(Sha256::digest(der).to_vec())
    } else if WITH_SHA384.contains(&oid) {
        Some(Sha384::digest(der).to_vec())
    } else if WITH_SHA512.contains(&oid) {
        Some(Sha512::digest(der).to_vec())
    } else {
        None
    }
}

/// The subject's first common name, as PostgreSQL takes it. `None` if there is none or it holds a NUL.
pub fn common_name(der: &[u8]) -> Option<String> {
    common_name_of(&Certificate::from_der(der).ok()?)
}

/// Whether a certificate without DNS names or IP addresses has `host` as its common name; libpq falls back to it.
pub(super) fn common_name_is(der: &[u8], host: &str) -> bool {
    let Ok(certificate) = Certificate::from_der(der) else {
        return false;
    };
    if has_alternative_names(&certificate) {
        return false;
    }
    common_name_of(&certificate).is_some_and(|name| name_matches(&name, host))
}

/// Whether the certificate is valid at this time since the epoch.
pub(super) fn is_valid_at(der: &[u8], now: Duration) -> bool {
    Certificate::from_der(der).is_ok_and(|certificate| {
        let validity = certificate.tbs_certificate.validity;
        validity.not_before.to_unix_duration() <= now
            && now <= validity.not_after.to_unix_duration()
    })
}

/// The certificate's public key, as DER.
pub(super) fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    certificate
        .tbs_certificate
        .subject_public_key_info
        .to_der()
        .ok()
}

fn common_name_of(certificate: &Certificate) -> Option<String> {
    let names = certificate.tbs_certificate.subject.0.iter();
    let value = names
        .flat_map(|name| name.0.iter())
        .find(|attribute| attribute.oid == COMMON_NAME)
        .map(|attribute| AnyRef::from(&attribute.value))?;
    let is_text = matches!(
        value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString
    );
    let text = std::str::from_utf8(value.value()).ok()?;
    // A name with a NUL may read differently to whoever issued it ("admin\0.attacker.example").
    (is_text && !text.contains('\0')).then(|| text.to_owned())
}

fn has_alternative_names(certificate: &Certificate) -> bool {
    match certificate.tbs_certificate.get::<SubjectAltName>() {
        Ok(Some((_, names))) => names
            .0
            .iter()
            .any(|name| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_))),
        Ok(None) => false,
        // Unreadable names are not the absence of names.
        Err(_) => true,
    }
}

/// libpq's match: equal without regard to case, or `*.` in place of exactly one label.
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(suffix), Some((_, parent))) = (pattern.strip_prefix("*."), host.split_once('.'))
    else {
        return false;
    };
    host.parse::<IpAddr>().is_err() && suffix.contains('.') && suffix.eq_ignore_ascii_case(parent)
}

/// `hashAlgorithm` of RSASSA-PSS-params (RFC 4055 section 3.1).
fn pss_digest(parameters: AnyRef<'_>) -> Option<ObjectIdentifier> {
    const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
    let mut reader = SliceReader::new(parameters.value()).ok()?;
    if reader.is_finished() {
        return Some(SHA1);
    }
    let field = AnyRef::decode(&mut reader).ok()?;
    let is_hash = matches!(field.tag(), Tag::ContextSpecific { number, .. } if number.value() == 0);
    if !is_hash {
        return Some(SHA1);
    }
    let algorithm = AnyRef::from_der(field.value()).ok()?;
    let mut reader = SliceReader::new(algorithm.value()).ok()?;
    ObjectIdentifier::decode(&mut reader).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn certificate(key: &KeyPair, common_name: Option<&str>, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            parameters.distinguished_name.push(DnType::CommonName, name);
        }
        parameters.self_signed(key).unwrap().der().to_vec()
    }

    #[test]
    fn the_binding_hash_follows_the_signature_algorithm() {
        let p256 = certificate(&KeyPair::generate().unwrap(), None, &["a"]);
        assert_eq!(end_point_hash(&p256), Some(Sha256::digest(&p256).to_vec()));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = certificate(&key, None, &["a"]);
        assert_eq!(end_point_hash(&p384), Some(Sha384::digest(&p384).to_vec()));
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        assert_eq!(end_point_hash(&certificate(&key, None, &["a"])), None);
    }

    #[test]
    fn the_digest_of_a_pss_signature_is_in_its_parameters() {
        // SEQUENCE { [0] { SEQUENCE { sha384, NULL } } }, and the empty one, which means SHA-1.
        let sha384 =
            b"\x30\x11\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00";
        let digest = pss_digest(AnyRef::from_der(sha384).unwrap()).unwrap();
        assert!(WITH_SHA384.contains(&digest));
        let digest = pss_digest(AnyRef::from_der(b"\x30\x00").unwrap()).unwrap();
        assert!(WITH_SHA256_OR_OLDER.contains(&digest));
    }

    #[test]
    fn the_common_name_is_read_and_a_nul_in_it_refused() {
        let key = KeyPair::generate().unwrap();
        let named = certificate(&key, Some("app"), &[]);
        assert_eq!(common_name(&named).as_deref(), Some("app"));
        assert_eq!(common_name(&certificate(&key, None, &["app"])), None);
        let with_nul = certificate(&key, Some("app\0.example"), &[]);
        assert_eq!(common_name(&with_nul), None);
    }

    #[test]
    fn the_common_name_counts_only_without_alternative_names() {
        let key = KeyPair::generate().unwrap();
        let bare = certificate(&key, Some("DB.example"), &[]);
        assert!(common_name_is(&bare, "db.example"));
        assert!(!common_name_is(&bare, "example"));
        let with_names = certificate(&key, Some("db.example"), &["other.example"]);
        assert!(!common_name_is(&with_names, "db.example"));
        let wildcard = certificate(&key, Some("*.db.example"), &[]);
        assert!(common_name_is(&wildcard, "a.db.example"));
        assert!(!common_name_is(&wildcard, "a.b.db.example"));
        assert!(!common_name_is(&wildcard, "db.example"));
        assert!(!name_matches("*.example", "db.example"));
        assert!(!name_matches("*.0.0.1", "127.0.0.1"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (end_point_hash(&bytes), common_name(&bytes), public_key(&bytes));
            let _ = AnyRef::from_der(&bytes).ok().and_then(pss_digest);
        }
    }
}
