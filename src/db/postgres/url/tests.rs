use super::*;

fn parse(url: &str) -> PostgresUrl {
    PostgresUrl::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"))
}

fn fault(url: &str) -> String {
    PostgresUrl::parse(url).err().unwrap_or_else(|| panic!("{url} is taken"))
}

/// URLs as hosts and libraries hand them out, and where they lead.
#[test]
fn urls_that_hosts_hand_out() {
    let tcp = |name: &str| Host::Tcp(name.to_owned());
    let unix = |path: &str| Host::Unix(path.into());
    type Led<'a> = (&'a str, Vec<Host>, &'a [u16], Option<&'a str>, Option<&'a str>, Option<&'a str>);
    let cases: &[Led] = &[
        (
            "postgresql://neondb_owner:npg_x@ep-a-pooler.eu.aws.neon.tech/neondb?sslmode=require&channel_binding=require",
            vec![tcp("ep-a-pooler.eu.aws.neon.tech")],
            &[5432],
            Some("neondb_owner"),
            Some("npg_x"),
            Some("neondb"),
        ),
        (
            "postgres://postgres.ref:p%40ss%2Fword@aws-0.pooler.supabase.com:6543/postgres?pgbouncer=true&connection_limit=1",
            vec![tcp("aws-0.pooler.supabase.com")],
            &[6543],
            Some("postgres.ref"),
            Some("p@ss/word"),
            Some("postgres"),
        ),
        // Cloud SQL, as Prisma's documents write it
        (
            "postgresql://u:p@localhost/db?host=/cloudsql/project:region:instance",
            vec![unix("/cloudsql/project:region:instance")],
            &[5432],
            Some("u"),
            Some("p"),
            Some("db"),
        ),
        ("postgres:///db?host=/var/run/postgresql", vec![unix("/var/run/postgresql")], &[5432], None, None, Some("db")),
        ("postgres://%2Fvar%2Frun%2Fpostgresql/db", vec![unix("/var/run/postgresql")], &[5432], None, None, Some("db")),
        ("postgres:///?port=6432&host=/tmp&dbname=d&user=u", vec![unix("/tmp")], &[6432], Some("u"), None, Some("d")),
        (
            "postgres://u@a:1,b:2/d?target_session_attrs=read-write",
            vec![tcp("a"), tcp("b")],
            &[1, 2],
            Some("u"),
            None,
            Some("d"),
        ),
        ("postgres://u:p@[::1]:5433/d", vec![tcp("::1")], &[5433], Some("u"), Some("p"), Some("d")),
        // not encoded, and clear all the same
        ("postgres://u:p@ss@h/d", vec![tcp("h")], &[5432], Some("u"), Some("p@ss"), Some("d")),
        ("postgres://u:what?&x@h/d", vec![tcp("h")], &[5432], Some("u"), Some("what?&x"), Some("d")),
        ("postgres://h/d?application_name=a@b", vec![tcp("h")], &[5432], None, None, Some("d")),
    ];
    for (url, hosts, ports, user, password, database) in cases {
        let config = parse(url).config;
        assert_eq!(config.get_hosts(), hosts, "{url}");
        assert_eq!(config.get_ports(), *ports, "{url}");
        assert_eq!(config.get_user(), *user, "{url}");
        assert_eq!(config.get_password(), password.map(str::as_bytes), "{url}");
        assert_eq!(config.get_dbname(), *database, "{url}");
    }
}

#[test]
fn how_the_connection_is_protected() {
    let cases = [
        ("", SslMode::Prefer),
        ("sslmode=disable", SslMode::Disable),
        ("sslmode=allow", SslMode::Prefer),
        ("sslmode=prefer", SslMode::Prefer),
        ("sslmode=require", SslMode::Require),
        ("sslmode=no-verify", SslMode::Require),
        ("sslmode=verify-ca", SslMode::VerifyCa),
        ("sslmode=verify-full", SslMode::VerifyFull),
        ("sslmode=require&sslrootcert=/ca.pem", SslMode::VerifyCa),
        ("sslrootcert=system", SslMode::VerifyFull),
        ("ssl=true", SslMode::Require),
        ("sslmode=verify-full&ssl=true", SslMode::VerifyFull),
        ("sslaccept=strict", SslMode::VerifyFull),
        ("sslmode=require&uselibpqcompat=true", SslMode::Require),
        ("host=/tmp&sslmode=require", SslMode::Disable),
        ("host=/tmp&sslmode=verify-full&sslrootcert=/ca.pem", SslMode::Disable),
    ];
    for (parameters, mode) in cases {
        assert_eq!(parse(&format!("postgres://u@h/d?{parameters}")).ssl().0, mode, "{parameters}");
    }
}

#[test]
fn settings_of_the_server_hold_in_each_transaction_and_are_not_sent_at_the_start() {
    let set = |name: &str, value: &str| format!("set_config('{name}', E'{value}', true)");
    let cases = [
        ("schema=captions", set("search_path", "\"captions\"")),
        ("schema=odd%22one", set("search_path", "\"odd\"\"one\"")),
        ("currentSchema=captions", set("search_path", "\"captions\"")),
        ("search_path=a,b", set("search_path", "a,b")),
        ("options=-c%20search_path%3Dcaptions", set("search_path", "captions")),
        ("options=-csearch_path%3Dcaptions", set("search_path", "captions")),
        ("options=--search_path%3Dcaptions", set("search_path", "captions")),
        ("options=-c%20role%3Dx'y%5C", set("role", "x''y\\\\")),
        (
            "statement_timeout=1000&lock_timeout=2s",
            [set("statement_timeout", "1000"), set("lock_timeout", "2s")].join(", "),
        ),
    ];
    for (parameters, sql) in cases {
        let url = parse(&format!("postgres://u@h/d?{parameters}"));
        assert_eq!(url.settings(), format!("SELECT {sql};"), "{parameters}");
        assert_eq!(url.config.get_options(), None, "{parameters}");
    }
    assert_eq!(parse("postgres://u@h/d").settings(), "");
    // What a proxy at the host wants to know does go out at the start.
    let neon = parse("postgres://u@h/d?options=endpoint%3Dep-x%20-c%20search_path%3Da");
    assert_eq!((neon.config.get_options(), neon.schema), (Some("endpoint=ep-x"), None));
}

#[test]
fn limits_of_pools_and_of_waiting_are_taken() {
    let url = parse(
        "postgres://u@h/d?connection_limit=3&pool_timeout=7&connect_timeout=9&keepalives_count=4&keepalives_idle=11\
         &tcp_user_timeout=1500&application_name=mine",
    );
    assert_eq!((url.connection_limit, url.pool_timeout), (Some(3), Some(Duration::from_secs(7))));
    assert_eq!(url.config.get_connect_timeout(), Some(&Duration::from_secs(9)));
    assert_eq!(url.config.get_keepalives_retries(), Some(4));
    assert_eq!(url.config.get_keepalives_idle(), Duration::from_secs(11));
    assert_eq!(url.config.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
    assert_eq!(url.config.get_application_name(), Some("mine"));
    let plain = parse("postgres://u@h/d?pool_timeout=0&connect_timeout=0");
    assert_eq!((plain.pool_timeout, plain.config.get_connect_timeout()), (None, Some(&CONNECT_TIMEOUT)));
    assert!(plain.notes.is_empty());
}

#[test]
fn what_means_nothing_here_is_said_and_does_no_harm() {
    for name in [
        "pgbouncer=true",
        "statement_cache_size=0",
        "prepareThreshold=0",
        "client_encoding=UTF8",
        "uselibpqcompat=true",
        "socket_timeout=9",
        "sslsni=1",
        "supa=base-pooler.x",
        "frobnicate",
    ] {
        let notes = parse(&format!("postgres://u@h/d?{name}")).notes;
        let known = name.split('=').next().unwrap();
        assert!(
            matches!(&notes[..], [note] if note.starts_with(&format!("{known} is ignored: "))),
            "{name}: {notes:?}"
        );
    }
    assert_eq!(parse("postgres://u@h/d?gssencmode=disable").notes, Vec::<String>::new());
}

#[test]
fn what_would_do_something_else_than_was_asked_for_is_refused_and_not_quoted() {
    for (parameter, said) in [
        ("sslmod=s3cret", "unknown parameter \"sslmod\"; allowed: sslmode,"),
        ("sslmode=s3cret", "sslmode is not understood; allowed: disable, allow,"),
        ("sslcrl=/s3cret", "sslcrl is not supported"),
        ("target_session_attrs=standby", "allowed: any, read-write, primary"),
        ("gssencmode=require", "gssencmode is not understood; allowed: disable, prefer"),
        ("channel_binding=s3cret", "allowed: disable, prefer, require"),
        ("connection_limit=0", "allowed: a whole number from 1"),
        ("connect_timeout=s3cret", "allowed: a whole number of seconds"),
        ("options=-c%20s3cret", "allowed: -c name=value,"),
        ("port=1,2", "as many ports as hosts"),
        ("service=s3cret", "service is not supported"),
        ("user=%FF", "UTF-8"),
    ] {
        let fault = fault(&format!("postgres://u:s3cret@h/d?{parameter}"));
        assert!(fault.contains(said) && !fault.contains("s3cret"), "{parameter}: {fault}");
    }
    for url in ["postgres://u:s3cret@h:port/d", "postgres://", "postgres:///d", "http://s3cret"] {
        let fault = fault(url);
        assert!(fault.contains("allowed: postgres://") && !fault.contains("s3cret"), "{url}: {fault}");
    }
}
