//! Which server certificates are believed, by libpq's rules rather than a browser's.
//!
//! # Why
//!
//! rustls's own verifier always checks chain and name. libpq's `require` checks neither, `verify-ca` the chain, and
//! `verify-full` also takes the common name where there are no alternative names. Besides, PostgreSQL's manual has
//! people make a self-signed certificate and use it as root: OpenSSL trusts it, webpki calls it "a CA used as end
//! entity". The proof that the server holds the certificate's key is checked in every mode.
//!
//! Known limit: webpki does not read X.509 version 1. Such a certificate works over TLS 1.3 only, with `require` or
//! where it is itself in `ca_file`.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate;

/// What is checked of a server's certificate.
#[derive(Debug)]
pub(super) enum Trust {
    Anything,
    /// The chain ends at one of `roots`.
    Chain(Roots),
    /// And the certificate is the host's.
    ChainAndName(Roots),
}

#[derive(Debug)]
pub(super) struct Roots {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) webpki: Arc<WebPkiServerVerifier>,
}

#[derive(Debug)]
pub(super) struct LibpqVerifier {
    pub(super) trust: Trust,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for LibpqVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (roots, check_name) = match &self.trust {
            Trust::Anything => return Ok(ServerCertVerified::assertion()),
            Trust::Chain(roots) => (roots, false),
            Trust::ChainAndName(roots) => (roots, true),
        };
        let pinned = roots.certificates.iter().any(|root| root == end_entity);
        if pinned {
            if !certificate::is_valid_at(end_entity, now_since_epoch(now)) {
                return Err(CertificateError::Expired.into());
            }
            return if !check_name || name_fits(end_entity, server_name) {
                Ok(ServerCertVerified::assertion())
            } else {
                Err(CertificateError::NotValidForName.into())
            };
        }
        let verified = roots.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // webpki looks at the name only once the chain has been found good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !check_name || name_fits(end_entity, server_name) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match certificate::public_key(cert) {
            Some(key) => verify_tls13_signature_with_raw_key(
                message,
                &SubjectPublicKeyInfoDer::from(key),
                dss,
                &self.algorithms,
            ),
            None => verify_tls13_signature(message, cert, dss, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn now_since_epoch(now: UnixTime) -> std::time::Duration {
    std::time::Duration::from_secs(now.as_secs())
}

/// Whether an alternative name or, without any, the common name is the host's.
fn name_fits(end_entity: &CertificateDer<'_>, server_name: &ServerName<'_>) -> bool {
    let by_alternative_name = rustls::server::ParsedCertificate::try_from(end_entity)
        .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, server_name).is_ok());
    by_alternative_name || certificate::common_name_is(end_entity, &server_name.to_str())
}
