use proptest::prelude::*;

use super::*;

const RULES: &str = r#"
# TYPE     DATABASE          USER            ADDRESS           METHOD
local      all               postgres                          peer map=ops
local      all               all                               md5
host       replication       walker          10.0.0.0/8        scram-sha-256
hostnossl  all               all             192.0.2.0/24      reject
hostssl    app, "all"       "all",alice     all               cert
hostssl    sameuser          all             2001:db8::/32     password clientcert=verify-ca
hostgssenc all               all             all               trust
host       reports           all  \
           198.51.100.0 255.255.255.0        trust   # one host too many
host       all               all             127.0.0.1/32      scram-sha-256
"#;

const FACTS: ConnectionFacts<'static> = ConnectionFacts {
    tls: false,
    peer: None,
    database: "app",
    user: "alice",
    replication: false,
    verified_certificate: false,
    common_name: None,
};

fn tcp(peer: &str) -> ConnectionFacts<'static> {
    ConnectionFacts {
        peer: Some(peer.parse().unwrap()),
        ..FACTS
    }
}

fn secure(peer: &str) -> ConnectionFacts<'static> {
    ConnectionFacts {
        tls: true,
        ..tcp(peer)
    }
}

fn who(
    user: &'static str,
    database: &'static str,
    facts: ConnectionFacts<'static>,
) -> ConnectionFacts<'static> {
    ConnectionFacts {
        database,
        user,
        ..facts
    }
}

fn replicating(user: &'static str, peer: &str) -> ConnectionFacts<'static> {
    ConnectionFacts {
        replication: true,
        ..who(user, "", tcp(peer))
    }
}

fn line(facts: ConnectionFacts<'_>) -> Option<usize> {
    Hba::parse(RULES)
        .unwrap()
        .decide(&facts)
        .map(|rule| rule.line)
}

#[test]
fn the_first_fitting_rule_decides() {
    let golden = [
        (who("postgres", "app", FACTS), Some(3)),
        (FACTS, Some(4)),
        (replicating("walker", "10.1.2.3"), Some(5)),
        (replicating("walker", "127.0.0.1"), None),
        (who("walker", "app", tcp("10.1.2.3")), None),
        (tcp("192.0.2.77"), Some(6)),
        (secure("192.0.2.77"), Some(7)),
        (who("all", "all", secure("192.0.2.77")), Some(7)),
        (who("bob", "app", secure("192.0.2.77")), None),
        (who("bob", "bob", secure("2001:db8::1")), Some(8)),
        (who("bob", "bob", tcp("2001:db8::1")), None),
        (who("bob", "reports", tcp("198.51.100.9")), Some(10)),
        (who("bob", "reports", tcp("198.51.101.9")), None),
        (tcp("127.0.0.1"), Some(12)),
        (tcp("::ffff:127.0.0.1"), Some(12)),
        (tcp("::1"), None),
    ];
    for (facts, expected) in golden {
        assert_eq!(line(facts), expected, "{facts:?}");
    }
}

#[test]
fn a_rule_is_read_whole() {
    let hba =
        Hba::parse("hostssl a,\"b c\" all 10.0.0.0/8 password clientcert=verify-full").unwrap();
    let name = |name: &str| DatabaseMatch::Name(name.to_owned());
    assert_eq!(
        hba.rules(),
        [Rule {
            line: 1,
            connection: ConnectionType::HostSsl,
            databases: vec![name("a"), name("b c")],
            users: vec![UserMatch::All],
            address: AddressMatch::Network {
                address: "10.0.0.0".parse().unwrap(),
                mask: "255.0.0.0".parse().unwrap(),
            },
            method: HbaMethod::Password,
            clientcert: Some(ClientCert::VerifyFull),
            map: None,
        }]
    );
}

const PROBLEMS: &[(&str, &str)] = &[
    (
        "remote all all all trust",
        "invalid connection type \"remote\"",
    ),
    ("include other.conf", "include is not supported"),
    ("local", "the database is missing"),
    ("local all", "the user is missing"),
    ("host all all", "the address is missing"),
    ("local all all", "the method is missing"),
    ("host all all 10.0.0.1 trust", "invalid IP mask \"trust\""),
    (
        "host all all 10.0.0.0/33 trust",
        "invalid CIDR mask in address \"10.0.0.0/33\"",
    ),
    (
        "host all all 10.0.0.0 ffff:: trust",
        "IP address and mask do not match",
    ),
    (
        "host all all db.example trust",
        "\"db.example\" is not an IP address; host names are not supported",
    ),
    (
        "host all all samenet trust",
        "samenet is not supported, write the network",
    ),
    (
        "host all +dev all trust",
        "groups are not supported, pgweir does not know the members of roles: +dev",
    ),
    (
        "host samerole all all trust",
        "groups are not supported, pgweir does not know the members of roles: samerole",
    ),
    (
        "host /^db all all trust",
        "regular expressions are not supported: /^db",
    ),
    (
        "host all /^u all trust",
        "regular expressions are not supported: /^u",
    ),
    (
        "host @dbs all all trust",
        "@dbs: files can't be included here",
    ),
    (
        "host all all all ldap",
        "authentication method \"ldap\" is not supported",
    ),
    (
        "host all all all magic",
        "invalid authentication method \"magic\"",
    ),
    (
        "host all all all peer",
        "peer authentication is only supported on local sockets",
    ),
    (
        "host all all all cert",
        "cert authentication is only supported on hostssl connections",
    ),
    (
        "host all all all md5 clientcert=verify-ca",
        "clientcert can only be configured for \"hostssl\" rows",
    ),
    (
        "hostssl all all all md5 clientcert=1",
        "invalid value for clientcert: \"1\"",
    ),
    (
        "hostssl all all all cert clientcert=verify-ca",
        "clientcert only accepts \"verify-full\" when using \"cert\" authentication",
    ),
    (
        "local all all md5 map=x",
        "authentication option \"map\" is only valid for authentication methods peer and cert",
    ),
    (
        "local all all md5 fast",
        "authentication option not in name=value format: fast",
    ),
    (
        "local all all md5 a=b",
        "authentication option \"a\" is not supported",
    ),
    ("local all \"all md5", "a double quote is not closed"),
    (
        "local,host all all md5",
        "the connection type must be one word, not a list",
    ),
];

#[test]
fn every_problem_is_reported_with_its_line() {
    let text: Vec<&str> = PROBLEMS.iter().map(|(line, _)| *line).collect();
    let problems = Hba::parse(&text.join("\n")).unwrap_err();
    let expected: Vec<HbaProblem> = PROBLEMS
        .iter()
        .enumerate()
        .map(|(index, (_, message))| HbaProblem {
            line: index + 1,
            message: (*message).to_owned(),
        })
        .collect();
    assert_eq!(problems, expected);
}

#[test]
fn names_come_from_files_beside_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "hba.conf",
        "local @dbs all trust\nlocal all @loop trust\nlocal all @none trust\n",
    );
    write("dbs", "one, two # comment\n\"all\"\n@more");
    write("more", "three");
    write("loop", "@loop");
    let problems = Hba::load(&folder.path().join("hba.conf"))
        .unwrap()
        .unwrap_err();
    assert_eq!(problems.len(), 2);
    assert!(
        problems[0]
            .message
            .ends_with("files include each other too deeply")
    );
    assert!(problems[1].message.starts_with("@none: "));

    write("hba.conf", "local @dbs all trust\n");
    let hba = Hba::load(&folder.path().join("hba.conf")).unwrap().unwrap();
    let names = ["one", "two", "all", "three"].map(|name| DatabaseMatch::Name(name.to_owned()));
    assert_eq!(hba.rules()[0].databases, names);
}

fn refusal(rule: &str, facts: ConnectionFacts<'_>) -> Option<String> {
    let maps = IdentMaps::parse("tls app.example alice").unwrap();
    let hba = Hba::parse(rule).unwrap();
    let refused = hba.admit(&facts, &maps).err()?;
    assert_eq!(refused.report().code, SqlState::INVALID_AUTHORIZATION);
    Some(refused.to_string())
}

#[test]
fn refusals_read_as_postgresqls() {
    let tcp = tcp("192.0.2.1");
    let golden = [
        (
            FACTS,
            "no pg_hba.conf entry for host \"[local]\", user \"alice\", database \"app\", no encryption",
        ),
        (
            ConnectionFacts { tls: true, ..tcp },
            "no pg_hba.conf entry for host \"192.0.2.1\", user \"alice\", database \"app\", SSL encryption",
        ),
        (
            ConnectionFacts {
                replication: true,
                ..tcp
            },
            "no pg_hba.conf entry for replication connection from host \"192.0.2.1\", user \"alice\", no encryption",
        ),
    ];
    for (facts, expected) in golden {
        assert_eq!(refusal("", facts).as_deref(), Some(expected));
    }
    assert_eq!(
        refusal("host all all all reject", tcp).as_deref(),
        Some(
            "pg_hba.conf rejects connection for host \"192.0.2.1\", user \"alice\", database \"app\", no encryption"
        )
    );
}

#[test]
fn certificates_are_asked_for_and_matched() {
    let tls = secure("192.0.2.1");
    let with = |name| ConnectionFacts {
        verified_certificate: true,
        common_name: Some(name),
        ..tls
    };
    let missing = Some("connection requires a valid client certificate".to_owned());
    let wrong = Some("certificate authentication failed for user \"alice\"".to_owned());
    let cert = "hostssl all all all cert";
    assert_eq!(refusal(cert, tls), missing);
    assert_eq!(refusal(cert, with("bob")), wrong);
    assert_eq!(refusal(cert, with("alice")), None);
    assert_eq!(
        refusal("hostssl all all all cert map=tls", with("app.example")),
        None
    );
    assert_eq!(
        refusal("hostssl all all all cert map=tls", with("alice")),
        wrong
    );
    let ca = "hostssl all all all md5 clientcert=verify-ca";
    assert_eq!(refusal(ca, tls), missing);
    assert_eq!(refusal(ca, with("bob")), None);
    let full = "hostssl all all all md5 clientcert=verify-full";
    assert_eq!(refusal(full, with("bob")), wrong);
    assert_eq!(refusal(full, with("alice")), None);
}

proptest! {
    #[test]
    fn garbage_never_panics(text in "([a-z@+/\"#, \\\\\n0-9.:=]|host|local|all|md5){0,60}") {
        let _ = Hba::parse(&text);
        let _ = IdentMaps::parse(&text);
    }
}
