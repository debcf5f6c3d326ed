//! What a URL says: one server, the seeds of a Cluster, or Sentinels and the name of a master. It opens nothing, and
//! nothing it returns for people to read holds a password.

use std::time::Duration;

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
    parse_redis_url,
};

use crate::error::{Error, Result};

const ALLOWED: &str = "redis://, rediss:// (TLS) with [user:password@]host[:port][/db]; unix:///path[?db=&user=&pass=]; \
                       redis+cluster://, rediss+cluster:// with [user:password@]host:port,host:port,…; \
                       redis+sentinel://, rediss+sentinel:// with [user:password@]host:port,…/master[/db]\
                       [?sentinel_user=&sentinel_password=]";
/// Where a Sentinel listens unless the URL says otherwise.
const SENTINEL_PORT: u16 = 26379;

/// A URL, taken apart.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) kind: Kind,
    /// The URL without user, password and options.
    pub(super) description: String,
}

/// The deployments of Redis.
#[derive(Debug)]
pub(super) enum Kind {
    Server(ConnectionInfo),
    /// Any of a Cluster's servers: the rest is learnt from them.
    Cluster(Vec<ConnectionInfo>),
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        /// The name the Sentinels know the master by.
        master: String,
        /// How to log in to that master; its address is a placeholder.
        server: ConnectionInfo,
    },
}

impl Endpoint {
    /// # Errors
    /// [`Error::Invalid`], with the URL's user, password and options left out.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let parts = Parts::of(url)?;
        match parts.scheme {
            "redis" | "rediss" | "unix" => {
                let options: &[&str] = if parts.scheme == "unix" { &["db", "user", "pass"] } else { &[] };
                let server = parts.server(url, options)?;
                Ok(Self { kind: Kind::Server(server), description: parts.description() })
            }
            "redis+cluster" | "rediss+cluster" => {
                let seeds = parts
                    .hosts()
                    .map(|host| parts.server(&parts.url_of(host, parts.path), &[]))
                    .collect::<Result<_>>()?;
                Ok(Self { kind: Kind::Cluster(seeds), description: parts.description() })
            }
            "redis+sentinel" | "rediss+sentinel" => parts.sentinel(),
            _ => Err(parts.invalid("its scheme is unknown")),
        }
    }
}

/// A URL cut at its punctuation. The parser of URLs takes one host only, so lists of them are cut here, and each host
/// is then parsed as a URL of its own.
struct Parts<'a> {
    scheme: &'a str,
    /// `user:password@`, or nothing.
    login: &'a str,
    hosts: &'a str,
    /// With its leading slash, or nothing.
    path: &'a str,
    /// With its leading question mark, or nothing.
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            // It may be anything, a bare password included: its length must do.
            return Err(Error::Invalid {
                what: "Redis URL",
                found: format!("({} bytes without \"://\")", url.len()),
                allowed: ALLOWED.to_owned(),
            });
        };
        // A fragment has no use here (redis-rs would take `#insecure`, which this build can't), so it stays in the
        // query and is refused there.
        let (rest, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Ok(Self { scheme, login, hosts, path, query })
    }

    fn description(&self) -> String {
        if self.is_login_unclear(self.path) {
            return format!("{}://…", self.scheme);
        }
        format!("{}://{}{}", self.scheme, self.hosts, self.path)
    }

    /// Whether what follows the hosts has an `@`: with a `/`, `?` or `#` in a password that was not escaped, what looks
    /// like the hosts is the password's beginning.
    fn is_login_unclear(&self, behind: &str) -> bool {
        !(self.login.is_empty() && self.hosts.is_empty()) && behind.contains('@')
    }

    fn invalid(&self, why: &str) -> Error {
        let found = if self.is_login_unclear(self.path) || self.is_login_unclear(self.query) {
            // Not even the reason: it may cite a part of the password.
            format!("{}://… (it can't be parsed; in a password / is written %2F, ? %3F and # %23)", self.scheme)
        } else {
            format!("{} ({why})", self.description())
        };
        Error::Invalid { what: "Redis URL", found, allowed: ALLOWED.to_owned() }
    }

    fn hosts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.hosts.split(',')
    }

    /// The URL of one host of several.
    fn url_of(&self, host: &str, path: &str) -> String {
        let base = if self.scheme.starts_with("rediss") { "rediss" } else { "redis" };
        format!("{base}://{}{host}{path}{}", self.login, self.query)
    }

    /// Parses a URL of one server, whose query may hold `options` only.
    fn server(&self, url: &str, options: &[&str]) -> Result<ConnectionInfo> {
        let parsed = parse_redis_url(url).ok_or_else(|| self.invalid("it can't be parsed"))?;
        if parsed.fragment().is_some() {
            return Err(self.invalid("it has a fragment"));
        }
        if parsed.scheme() == "unix" && parsed.has_host() {
            return Err(self.invalid("a socket has a path and no host: write three slashes"));
        }
        if let Some((name, _)) = parsed.query_pairs().find(|(name, _)| !options.contains(&name.as_ref())) {
            return Err(self.invalid(&format!("it has the unknown option {name:?}")));
        }
        let info = parsed.into_connection_info().map_err(|error: RedisError| self.invalid(&error.to_string()))?;
        // RESP3, because redis-rs then says when a connection ends, not only when the next call fails on it.
        let login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let login = login.set_lib_name("redis-allocator", env!("CARGO_PKG_VERSION"));
        Ok(info.set_redis_settings(login).set_tcp_settings(tcp_settings()))
    }

    fn sentinel(&self) -> Result<Endpoint> {
        const OPTIONS: &[&str] = &["sentinel_user", "sentinel_password"];
        let mut path = self.path.trim_start_matches('/').splitn(2, '/');
        let master = path.next().filter(|name| !name.is_empty()).ok_or_else(|| self.invalid("it names no master"))?;
        let db = path.next().map(|db| format!("/{db}")).unwrap_or_default();

        let mut server = None;
        let mut sentinels = Vec::new();
        for host in self.hosts() {
            let url = self.url_of(host, &db);
            let info = self.server(&url, OPTIONS)?;
            let parsed = parse_redis_url(&url).ok_or_else(|| self.invalid("it can't be parsed"))?;
            let option = |wanted: &str| parsed.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value);

            // Sentinels have users of their own and no databases.
            let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
            if let Some(user) = option("sentinel_user") {
                login = login.set_username(user);
            }
            if let Some(password) = option("sentinel_password") {
                login = login.set_password(password);
            }
            let (name, _) = host_and_port(info.addr());
            let sentinel = info.clone().set_redis_settings(login);
            sentinels.push(at(&sentinel, &name, parsed.port().unwrap_or(SENTINEL_PORT)));
            server = Some(info);
        }
        let server = server.ok_or_else(|| self.invalid("it names no host"))?;
        let kind = Kind::Sentinel { sentinels, master: master.to_owned(), server };
        Ok(Endpoint { kind, description: self.description() })
    }
}

/// Small requests must not wait for each other, and a peer that vanished must be noticed by an idle connection too.
fn tcp_settings() -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);
    TcpSettings::default().set_nodelay(true).set_keepalive(keepalive)
}

/// The same login, and TLS or not, at another address.
pub(super) fn at(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let host = host.to_owned();
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(address)
}

/// Where a server listens. A socket counts as this host, since its peers in a Cluster are reached by TCP.
pub(super) fn host_and_port(address: &ConnectionAddr) -> (String, u16) {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
        _ => ("127.0.0.1".to_owned(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> ConnectionInfo {
        match Endpoint::parse(url).unwrap().kind {
            Kind::Server(info) => info,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn one_server_is_reached_by_tcp_tls_or_a_socket() {
        let plain = server("redis://ann:p%40ss@redis.example:7000/3");
        assert_eq!(plain.addr(), &ConnectionAddr::Tcp("redis.example".into(), 7000));
        let login = plain.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("ann"), Some("p@ss"), 3));
        assert!(plain.tcp_settings().nodelay() && plain.tcp_settings().keepalive().is_some());

        assert_eq!(server("redis://[::1]").addr(), &ConnectionAddr::Tcp("::1".into(), 6379));
        assert!(matches!(server("rediss://a:1").addr(), ConnectionAddr::TcpTls { insecure: false, .. }));

        let socket = server("unix:///run/redis.sock?db=2&user=ann&pass=secret");
        assert_eq!(socket.addr(), &ConnectionAddr::Unix("/run/redis.sock".into()));
        assert_eq!((socket.redis_settings().db(), socket.redis_settings().password()), (2, Some("secret")));
    }

    #[test]
    fn a_cluster_has_seeds_that_share_a_login() {
        let Kind::Cluster(seeds) = Endpoint::parse("rediss+cluster://ann:secret@a:1,[::2]:2,c").unwrap().kind else {
            panic!("not a cluster")
        };
        let addresses: Vec<_> = seeds.iter().map(|seed| host_and_port(seed.addr())).collect();
        assert_eq!(addresses, [("a".into(), 1), ("::2".into(), 2), ("c".into(), 6379)]);
        for seed in seeds {
            assert!(matches!(seed.addr(), ConnectionAddr::TcpTls { .. }));
            assert_eq!(seed.redis_settings().password(), Some("secret"));
        }
    }

    #[test]
    fn sentinels_have_a_login_of_their_own() {
        let url = "redis+sentinel://ann:secret@a:1,b/main/4?sentinel_user=bob&sentinel_password=p%2Fw";
        let Kind::Sentinel { sentinels, master, server } = Endpoint::parse(url).unwrap().kind else {
            panic!("not sentinels")
        };
        let addresses: Vec<_> = sentinels.iter().map(|sentinel| host_and_port(sentinel.addr())).collect();
        assert_eq!(addresses, [("a".into(), 1), ("b".into(), SENTINEL_PORT)]);
        assert_eq!(master, "main");
        let login = sentinels[1].redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("bob"), Some("p/w"), 0));
        let login = server.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("ann"), Some("secret"), 4));
    }

    #[test]
    fn a_bad_url_is_refused_without_telling_its_secrets() {
        for url in [
            "secret",
            "",
            "://ann:secret@host",
            "http://ann:secret@host",
            "redis://ann:secret@",
            "redis://ann:secret@host:99999",
            "redis://ann:secret@host/x",
            "redis://ann:secret@host?timeout=secret",
            "redis://ann:secret@host#secret",
            "rediss://ann:secret@host/#insecure",
            "redis://ann:secret@0.0.0.0",
            "redis://:secret#pw@host",
            "redis://:secret/pw@host",
            "redis://ann:12?secret@host",
            "redis://ann:12/secret@host",
            "redis://a@secret?b@host",
            "redis+cluster://:secret#pw@a:1,b:2",
            "unix://ann:secret@host/path?pass=secret",
            "unix:///path?pass=secret&db=x",
            "redis+cluster://ann:secret@",
            "redis+cluster://ann:secret@a:1,,b:2",
            "redis+cluster://ann:secret@a:1?x=secret",
            "redis+sentinel://ann:secret@a:1",
            "redis+sentinel://ann:secret@a:1/",
            "redis+sentinel://ann:secret@a:1/main/x",
            "redis+sentinel://ann:secret@a:1/main?sentinel_pass=secret",
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn a_description_has_no_secrets() {
        for (url, description) in [
            ("redis://ann:secret@host:1/2", "redis://host:1/2"),
            ("unix:///run/redis.sock?pass=secret", "unix:///run/redis.sock"),
            ("redis+cluster://ann:se@cret@a:1,b:2", "redis+cluster://a:1,b:2"),
            ("redis+sentinel://:secret@a:1/main?sentinel_password=secret", "redis+sentinel://a:1/main"),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().description, description);
        }
    }
}
