//! The packets before authentication, which have no type byte: `StartupMessage`, `SSLRequest`, `GSSENCRequest`,
//! `CancelRequest`; and the answer to a protocol version nobody here speaks.

use thiserror::Error;

use super::frame::{put, put_cstr, take_cstr};
use super::limits::STARTUP_PACKET_MAX;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// A protocol version: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

impl Version {
    pub const V3_0: Self = Self { major: 3, minor: 0 };
    pub const V3_2: Self = Self { major: 3, minor: 2 };
}

/// Why a first packet was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Version { major: u16, minor: u16 },
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("invalid cancel request")]
    Cancel,
}

/// The first packet of a connection, or the one after a refused encryption request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupPacket {
    Ssl,
    GssEnc,
    Cancel { pid: u32, key: Vec<u8> },
    Startup(StartupMessage),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupMessage {
    /// The version the client asked for; what is spoken is the lower of that and 3.2.
    pub version: Version,
    pub user: Vec<u8>,
    /// Defaults to the user.
    pub database: Vec<u8>,
    /// The `replication` parameter, if it is not off.
    pub replication: Option<Vec<u8>>,
    /// Every other parameter in order, `options` not yet taken apart, `_pq_.` ones left out.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    /// Protocol options (`_pq_.…`), none of which is known.
    pub protocol_options: Vec<Vec<u8>>,
}

impl StartupMessage {
    /// The `application_name`, with what is not UTF-8 replaced.
    pub fn application_name(&self) -> Box<str> {
        let given = self
            .parameters
            .iter()
            .find(|(name, _)| name == b"application_name");
        given.map_or_else(Box::default, |(_, value)| {
            String::from_utf8_lossy(value).into()
        })
    }
}

impl StartupMessage {
    /// Bytes of cancel key the client can take: four before protocol 3.2, any number up to 256 since.
    pub fn cancel_key_len(&self) -> usize {
        if self.version < Version::V3_2 { 4 } else { 256 }
    }
}

/// Size of the whole packet whose first four bytes are `head`.
pub fn packet_len(head: [u8; 4]) -> Result<usize, StartupError> {
    let len = u32::from_be_bytes(head) as usize;
    if (8..=STARTUP_PACKET_MAX).contains(&len) {
        Ok(len)
    } else {
        Err(StartupError::Length)
    }
}

/// Reads a whole packet without its length.
pub fn read(packet: &[u8]) -> Result<StartupPacket, StartupError> {
    let (code, rest) = packet
        .split_first_chunk::<4>()
        .ok_or(StartupError::Length)?;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if rest.is_empty() => Ok(StartupPacket::Ssl),
        GSSENC_REQUEST if rest.is_empty() => Ok(StartupPacket::GssEnc),
        CANCEL_REQUEST => match rest.split_first_chunk::<4>() {
            Some((pid, key)) if (4..=256).contains(&key.len()) => Ok(StartupPacket::Cancel {
                pid: u32::from_be_bytes(*pid),
                key: key.to_vec(),
            }),
            _ => Err(StartupError::Cancel),
        },
        code => {
            let [a, b, c, d] = code.to_be_bytes();
            let version = Version {
                major: u16::from_be_bytes([a, b]),
                minor: u16::from_be_bytes([c, d]),
            };
            if version.major != 3 {
                return Err(StartupError::Version {
                    major: version.major,
                    minor: version.minor,
                });
            }
            read_parameters(version, rest).map(StartupPacket::Startup)
        }
    }
}

fn read_parameters(version: Version, mut rest: &[u8]) -> Result<StartupMessage, StartupError> {
    let mut message = StartupMessage {
        version,
        user: Vec::new(),
        database: Vec::new(),
        replication: None,
        parameters: Vec::new(),
        protocol_options: Vec::new(),
    };
    loop {
        let name = take_cstr(&mut rest).ok_or(StartupError::Layout)?;
        if name.is_empty() {
            break;
        }
        let value = take_cstr(&mut rest).ok_or(StartupError::Layout)?;
        match name {
            b"user" => message.user = value.to_vec(),
            b"database" => message.database = value.to_vec(),
            b"replication" => message.replication = replication(value),
            _ if name.starts_with(b"_pq_.") => message.protocol_options.push(name.to_vec()),
            _ => message.parameters.push((name.to_vec(), value.to_vec())),
        }
    }
    if !rest.is_empty() {
        return Err(StartupError::Layout);
    }
    if message.user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if message.database.is_empty() {
        message.database.clone_from(&message.user);
    }
    Ok(message)
}

/// PostgreSQL reads the value as a boolean or the word `database`.
fn replication(value: &[u8]) -> Option<Vec<u8>> {
    let off = [&b"false"[..], b"off", b"no", b"0", b"f", b"n"];
    (!off.iter().any(|word| value.eq_ignore_ascii_case(word))).then(|| value.to_vec())
}

/// Appends `NegotiateProtocolVersion`: the newest minor version spoken here and the options not known.
pub fn put_negotiate_protocol_version(out: &mut Vec<u8>, newest: Version, options: &[Vec<u8>]) {
    put(out, super::backend::NEGOTIATE_PROTOCOL_VERSION, |out| {
        out.extend_from_slice(&newest.major.to_be_bytes());
        out.extend_from_slice(&newest.minor.to_be_bytes());
        // A startup packet of 10,000 bytes can't hold more options than fit in 32 bits.
        out.extend_from_slice(
            &u32::try_from(options.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        for option in options {
            put_cstr(out, option);
        }
    });
}

/// Appends a `CancelRequest`.
pub fn put_cancel_request(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    super::frame::put_untagged(out, |out| {
        out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// Takes apart the `options` parameter (`-c name=value`, `--name=value`, `-cname=value`) as the server does: words
/// split at white space, a backslash keeps the next character. `None` if it holds anything else, such as other
/// command-line switches, which pgweir can't carry.
pub fn read_options(options: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let words = split_options(options);
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = if word == b"-c" {
            words.next()?
        } else if let Some(rest) = word
            .strip_prefix(b"--")
            .or_else(|| word.strip_prefix(b"-c"))
        {
            rest.to_vec()
        } else {
            return None;
        };
        let split = assignment.iter().position(|&byte| byte == b'=')?;
        // The server takes a dash in a long option's name for an underscore (ParseLongOption).
        let name = assignment[..split]
            .iter()
            .map(|&byte| if byte == b'-' { b'_' } else { byte })
            .collect();
        settings.push((name, assignment[split + 1..].to_vec()));
    }
    Some(settings)
}

fn split_options(options: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            let byte = if byte == b'\\' {
                bytes.next().unwrap_or(byte)
            } else {
                byte
            };
            word.get_or_insert_default().push(byte);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn startup(body: &[u8]) -> Result<StartupPacket, StartupError> {
        let mut packet = vec![0, 3, 0, 0];
        packet.extend_from_slice(body);
        read(&packet)
    }

    #[test]
    fn the_database_defaults_to_the_user() {
        let Ok(StartupPacket::Startup(message)) =
            startup(b"user\0bob\0_pq_.x\0yes\0DateStyle\0ISO\0\0")
        else {
            panic!("not a startup message");
        };
        assert_eq!(message.database, b"bob");
        assert_eq!(message.protocol_options, [b"_pq_.x".to_vec()]);
        assert_eq!(
            message.parameters,
            [(b"DateStyle".to_vec(), b"ISO".to_vec())]
        );
    }

    #[test]
    fn malformed_packets_are_refused_with_their_reason() {
        assert_eq!(startup(b"user\0bob\0"), Err(StartupError::Layout));
        assert_eq!(startup(b"user\0bob\0\0x"), Err(StartupError::Layout));
        assert_eq!(startup(b"\0"), Err(StartupError::NoUser));
        assert_eq!(
            read(&[0, 2, 0, 0, 0]),
            Err(StartupError::Version { major: 2, minor: 0 })
        );
        assert_eq!(packet_len([0, 0, 0, 7]), Err(StartupError::Length));
        assert_eq!(packet_len([0x7f, 0, 0, 0]), Err(StartupError::Length));
        assert_eq!(packet_len([0, 0, 0, 8]), Ok(8));
    }

    #[test]
    fn options_are_taken_apart_as_the_server_does() {
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        assert_eq!(
            read_options(b"-c a=1 --work-mem=4MB -csearch_path=x\\ y"),
            Some(vec![
                pair("a", "1"),
                pair("work_mem", "4MB"),
                pair("search_path", "x y")
            ])
        );
        assert_eq!(read_options(b""), Some(vec![]));
        assert_eq!(read_options(b"-c"), None);
        assert_eq!(read_options(b"-S 5"), None);
    }

    #[test]
    fn a_cancel_request_takes_keys_of_four_to_256_bytes() {
        let mut out = Vec::new();
        put_cancel_request(&mut out, 7, &[1; 32]);
        assert_eq!(
            read(&out[4..]),
            Ok(StartupPacket::Cancel {
                pid: 7,
                key: vec![1; 32]
            })
        );
        assert_eq!(read(&out[4..15]), Err(StartupError::Cancel));
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1..=255_u8, 1..12)
    }

    proptest! {
        #[test]
        fn no_packet_panics(
            code in prop_oneof![
                any::<u32>(),
                Just(SSL_REQUEST),
                Just(GSSENC_REQUEST),
                Just(CANCEL_REQUEST),
                (0..3_u32).prop_map(|minor| (3 << 16) | minor),
            ],
            bytes in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..80),
        ) {
            let _ = read(&bytes);
            let _ = read(&[&code.to_be_bytes(), bytes.as_slice()].concat());
            if let Some(settings) = read_options(&bytes) {
                prop_assert!(settings.len() <= bytes.len());
            }
        }

        #[test]
        fn parameters_are_read_in_order_and_nothing_shorter_is(
            user in text(),
            parameters in prop::collection::vec((text(), text()), 0..5),
        ) {
            let known = [&b"user"[..], b"database", b"replication"];
            prop_assume!(!parameters.iter().any(|(name, _)| known.contains(&&name[..]) || name.starts_with(b"_pq_.")));
            let mut body = vec![0, 3, 0, 0];
            put_cstr(&mut body, b"user");
            put_cstr(&mut body, &user);
            for (name, value) in &parameters {
                put_cstr(&mut body, name);
                put_cstr(&mut body, value);
            }
            body.push(0);
            let Ok(StartupPacket::Startup(message)) = read(&body) else {
                panic!("not a startup message");
            };
            prop_assert_eq!((&message.user, &message.database), (&user, &user));
            prop_assert_eq!(&message.parameters, &parameters);
            for cut in 0..body.len() {
                prop_assert!(read(&body[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn options_survive_quoting(
            settings in prop::collection::vec(("[a-z_]{1,8}", prop::collection::vec(1..=255_u8, 0..10)), 0..5),
        ) {
            let mut options = Vec::new();
            for (name, value) in &settings {
                options.extend_from_slice(b"  -c ");
                options.extend_from_slice(name.as_bytes());
                options.push(b'=');
                for byte in value {
                    if byte.is_ascii_whitespace() || *byte == b'\\' {
                        options.push(b'\\');
                    }
                    options.push(*byte);
                }
            }
            let expected: Vec<(Vec<u8>, Vec<u8>)> =
                settings.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
            prop_assert_eq!(read_options(&options), Some(expected));
        }
    }
}
