use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use guesthouse_tests::artifacts::{run_host, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY};
use guesthouse_tests::{DEADLINE, DEMO_KEY, Server, Setup, environment, eventually};
use reqwest::blocking::Client;
use reqwest::{StatusCode, Version, tls};
use serde_json::json;
use tempfile::TempDir;

/// A self-signed certificate for this machine and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn generate() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let pair = rcgen::generate_simple_self_signed(names).unwrap();
        Self { certificate: pair.cert.pem(), key: pair.signing_key.serialize_pem() }
    }

    /// A client that trusts this certificate only.
    fn client(&self) -> reqwest::blocking::ClientBuilder {
        let certificate = reqwest::Certificate::from_pem(self.certificate.as_bytes()).unwrap();
        client::http().tls_certs_only([certificate])
    }

    fn is_trusted_at(&self, server: &Server) -> bool {
        let client = self.client().build().unwrap();
        client.get(https(server, "/healthz")).send().is_ok()
    }
}

/// A TLS server whose certificate files the test can replace.
struct TlsServer {
    server: Server,
    folder: TempDir,
}

impl TlsServer {
    fn start(pair: &Pair, limits: &str) -> Self {
        let folder = temporary_folder();
        replace(folder.path(), "certificate.pem", &pair.certificate);
        replace(folder.path(), "key.pem", &pair.key);
        let mut setup = Setup::toxicity();
        setup.config.push_str(&tls_section(folder.path()));
        setup.config.push_str(&format!("[limits]\n{limits}\n"));
        Self { server: Server::start(&setup), folder }
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }
}

fn tls_section(folder: &Path) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!("\n[tls]\ncertificate = {:?}\nkey = {:?}\n", file("certificate.pem"), file("key.pem"))
}

/// Replaces a file atomically, as renewal tools do.
fn replace(folder: &Path, name: &str, text: &str) {
    let temporary = folder.join("new");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, folder.join(name)).unwrap();
}

fn count(server: &Server, message: &str) -> usize {
    server.lines().iter().filter(|line| line["message"] == message).count()
}

fn https(server: &Server, path: &str) -> String {
    format!("https://{}{path}", server.address())
}

fn predict(client: &Client, server: &Server) -> reqwest::blocking::Response {
    let request = client.post(https(server, "/v1/predict")).header("X-API-Key", DEMO_KEY);
    let response = request.json(&json!({"text": "You are nice"})).send().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response
}

/// Runs curl; returns its exit code, and the status and version of HTTP.
fn curl(tls_server: &TlsServer, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--cacert"]);
    command
        .arg(tls_server.certificate())
        .args(arguments)
        .arg(https(&tls_server.server, "/healthz"));
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_newest_common_protocol_versions_are_negotiated() {
    let pair = Pair::generate();
    let tls_server = TlsServer::start(&pair, "");
    let server = &tls_server.server;
    for (client, version) in [
        (pair.client(), Version::HTTP_2),
        (pair.client().http1_only(), Version::HTTP_11),
        (pair.client().tls_version_max(tls::Version::TLS_1_2), Version::HTTP_2),
    ] {
        let response = predict(&client.build().unwrap(), server);
        assert_eq!(response.version(), version);
        assert_eq!(response.json::<serde_json::Value>().unwrap()["label"], "clean");
    }
    assert_eq!(curl(&tls_server, &["--http2"]), (0, "200 2".to_owned()));
    assert_eq!(curl(&tls_server, &["--http1.1"]), (0, "200 1.1".to_owned()));
    assert_eq!(curl(&tls_server, &["--tls-max", "1.2"]).0, 0);
    // Exit code 35: the handshake failed.
    let old = ["--tls-max", "1.1", "--ciphers", "ALL:@SECLEVEL=0"];
    assert_eq!(curl(&tls_server, &old).0, 35);
    // The admin listener has the same certificate.
    let status = format!("https://{}/admin/v1/status", server.admin_address());
    let client = pair.client().build().unwrap();
    let status = client.get(status).header("X-API-Key", DEMO_ADMIN_KEY).send().unwrap();
    assert_eq!(status.status(), StatusCode::OK);
    assert!(!Pair::generate().is_trusted_at(server), "an unrelated certificate is trusted");
}

#[test]
fn commands_trust_the_given_certificate_authority() {
    let pair = Pair::generate();
    let tls_server = TlsServer::start(&pair, "");
    let stranger = tls_server.folder.path().join("stranger.pem");
    fs::write(&stranger, Pair::generate().certificate).unwrap();
    let server = format!("https://{}", tls_server.server.admin_address());
    let status = |ca: Option<&Path>| {
        let mut command = Command::new(environment::host());
        command.args(["status", "--server", &server]);
        command.args(ca.iter().flat_map(|ca| [Path::new("--ca"), ca]));
        let output = command.env("GUESTHOUSE_ADMIN_KEY", DEMO_ADMIN_KEY).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, stdout) = status(Some(&tls_server.certificate()));
    assert!(code == Some(0) && stdout.contains("toxicity"), "{code:?} {stdout}");
    for ca in [None, Some(stranger.as_path()), Some(&tls_server.folder.path().join("key.pem"))] {
        let (code, stdout) = status(ca);
        assert!(code != Some(0) && stdout.is_empty(), "{ca:?}: {code:?} {stdout}");
    }
}

#[test]
fn failed_handshakes_affect_only_their_connection() {
    let pair = Pair::generate();
    let tls_server = TlsServer::start(&pair, "head_seconds = 1\nconnections = 8");
    let server = &tls_server.server;
    let open = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    // Plain HTTP, random bytes, and the beginning of a long record.
    let mut connections: Vec<_> = [
        &b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        &[0xff; 4096],
        b"\x16\x03\x01\x3f\xff\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    .into_iter()
    .map(open)
    .collect();
    // As many silent connections as the limit allows.
    connections.extend((0..8).map(|_| open(b"")));
    // Served when the connections before it have timed out.
    assert!(pair.is_trusted_at(server));
    for mut stream in connections {
        let mut rest = Vec::new();
        // Closed, with or without an alert.
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&rest));
    }
    assert!(pair.is_trusted_at(server));
    assert!(tls_server.server.stop().0.success(), "requests were left to drain");
}

#[test]
fn an_incomplete_handshake_does_not_delay_the_shutdown() {
    let tls_server =
        TlsServer::start(&Pair::generate(), "head_seconds = 3600\ndrain_seconds = 3600");
    let mut stream = TcpStream::connect(tls_server.server.address()).unwrap();
    stream.write_all(b"\x16\x03\x01").unwrap();
    assert!(tls_server.server.stop().0.success(), "requests were left to drain");
}

#[test]
fn a_valid_renewal_is_used_and_an_invalid_one_ignored() {
    let (first, second) = (Pair::generate(), Pair::generate());
    let tls_server = TlsServer::start(&first, "");
    let (server, folder) = (&tls_server.server, tls_server.folder.path());
    assert!(first.is_trusted_at(server) && !second.is_trusted_at(server));
    let lasting = first.client().build().unwrap();
    predict(&lasting, server);
    // Half of a renewal: certificate and key do not match.
    replace(folder, "certificate.pem", &second.certificate);
    let refused = "the new certificate cannot be used, the previous one stays in use";
    server.wait_for("the rejection", |line| line["message"] == refused);
    assert!(first.is_trusted_at(server) && !second.is_trusted_at(server));
    replace(folder, "key.pem", &second.key);
    server.wait_for("the renewal", |line| line["message"] == "certificate replaced");
    assert!(second.is_trusted_at(server) && !first.is_trusted_at(server));
    // Existing connections continue.
    predict(&lasting, server);
    for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let before = count(server, refused);
        replace(folder, "certificate.pem", bad);
        eventually("another rejection", || count(server, refused) > before);
        assert!(second.is_trusted_at(server));
    }
    fs::remove_file(folder.join("key.pem")).unwrap();
    assert!(second.is_trusted_at(server));
    replace(folder, "certificate.pem", &first.certificate);
    replace(folder, "key.pem", &first.key);
    eventually("the first certificate is used again", || {
        count(server, "certificate replaced") == 2
    });
    assert!(first.is_trusted_at(server));
}

#[test]
fn an_unusable_certificate_fails_the_start() {
    let folder = temporary_folder();
    let config = folder.path().join("guesthouse.toml");
    fs::write(&config, format!("listen = \"127.0.0.1:0\"\n{}", tls_section(folder.path())))
        .unwrap();
    let (pair, other) = (Pair::generate(), Pair::generate());
    for (certificate, key) in [
        (None, Some(&pair.key)),
        (Some(&pair.certificate), None),
        (Some(&pair.certificate), Some(&other.key)),
        (Some(&pair.key), Some(&pair.key)),
        (Some(&pair.certificate), Some(&pair.certificate)),
    ] {
        for (name, text) in [("certificate.pem", certificate), ("key.pem", key)] {
            match text {
                Some(text) => replace(folder.path(), name, text),
                None => _ = fs::remove_file(folder.path().join(name)),
            }
        }
        let state = folder.path().join("state").display().to_string();
        let config = config.display().to_string();
        let output = run_host(&["serve", "--config", &config, "--state", &state]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("TLS") && !stderr.contains("listening"), "{stderr}");
    }
}

/// An unused key, encrypted in both formats of OpenSSL; the password is `guesthouse`.
const ENCRYPTED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAj1zjN0N4oHnAICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEEIvZ4qMelIGndZW0tedtphsEgZBp
l3fxLtLDS7ji4G6gL2m7A+2ICLZzpZ6ekK7Hg8br/4U2NAnbtOhq+xzYUDPYHt8C
VRPw/KkwismfikfcB48uY+6glJGdQjikjtFKwIpQ8uCwWKlbi1QI33w+xkFszMnN
3f5aDEHe8gmq9QRC+FpRsleShNnu72VDrRrZtqUxOLr0gMDpjIGqk5HJnvboInQ=
-----END ENCRYPTED PRIVATE KEY-----
";
const ENCRYPTED_OLD: &str = "\
-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,90870119715AF99775AE5D8BA95A3A8B

5cBDxlvrSyii6/0c6qEAiGrHVpy3cC4GpdUcyElG2hfle1xOP8BHhBoUwgdGwJPe
vjtUr5O144/pfPsBsUaT0X0MjjqrhvXYh2jLMxZjgDw1SHjHb9jR31RRKNPxKW+F
9C1YCUF5eHs1y74ogtsR4eyjM7PCwcggLoO1j3284yg=
-----END EC PRIVATE KEY-----
";

/// An Ed448 key, which is not supported.
const UNSUPPORTED: &str = "\
-----BEGIN PRIVATE KEY-----
MEcCAQAwBQYDK2VxBDsEOU0CLC3tFEyLhEfOTz9gxGIicOlfCF9kQEqQzfwv4+Ep
pSIOfQrKjPLc4NCX1vWKPbIzybYVeQRnTg==
-----END PRIVATE KEY-----
";

#[test]
fn an_unusable_key_is_rejected_with_the_reason() {
    let folder = temporary_folder();
    let config = folder.path().join("guesthouse.toml");
    fs::write(&config, format!("listen = \"127.0.0.1:0\"\n{}", tls_section(folder.path())))
        .unwrap();
    let (config, state) = (config.display().to_string(), folder.path().join("state"));
    let state = state.display().to_string();
    let (pair, other) = (Pair::generate(), Pair::generate());
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let public = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    let damaged = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let request = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    let both = format!("{}{ENCRYPTED}", pair.certificate);
    let usable = format!("{parameters}{}", pair.key);
    for (certificate, key, word) in [
        (pair.certificate.as_str(), usable.as_str(), None),
        (&pair.certificate, ENCRYPTED, Some("encrypted")),
        (&pair.certificate, ENCRYPTED_OLD, Some("encrypted")),
        (&pair.certificate, &ENCRYPTED.replace('\n', "\r\n"), Some("encrypted")),
        (&pair.certificate, &both, Some("encrypted")),
        (&pair.certificate, &pair.certificate, Some("`CERTIFICATE`")),
        (&pair.certificate, parameters, Some("`EC PARAMETERS`")),
        (&pair.certificate, public, Some("`PUBLIC KEY`")),
        (&pair.certificate, damaged, Some("Ed25519")),
        (&pair.certificate, UNSUPPORTED, Some("Ed25519")),
        (&pair.certificate, "\u{30}\u{2}", Some("not PEM")),
        (&pair.certificate, "", Some("not PEM")),
        (&pair.certificate, &other.key, Some("not that of the first certificate")),
        (&pair.key, &pair.key, Some("`PRIVATE KEY`")),
        (request, &pair.key, Some("`CERTIFICATE REQUEST`")),
        ("", &pair.key, Some("not PEM")),
    ] {
        replace(folder.path(), "certificate.pem", certificate);
        replace(folder.path(), "key.pem", key);
        let checked = run_host(&["config", "check", "--config", &config]);
        let stderr = String::from_utf8_lossy(&checked.stderr);
        let Some(word) = word else {
            assert!(checked.status.success(), "{stderr}");
            continue;
        };
        assert_eq!(checked.status.code(), Some(1), "{word}: {stderr}");
        assert!(stderr.contains(word), "{word}: {stderr}");
        let served = run_host(&["serve", "--config", &config, "--state", &state]);
        let stderr = String::from_utf8_lossy(&served.stderr);
        assert_eq!(served.status.code(), Some(1), "{word}: {stderr}");
        assert!(stderr.contains(word) && !stderr.contains("listening"), "{word}: {stderr}");
    }
}

/// A half-closed TLS connection is answered, and a rejection does not wait for the body.
#[test]
fn half_closed_tls_connections_are_answered() {
    use rustls::pki_types::pem::PemObject as _;
    let pair = Pair::generate();
    let tls_server = TlsServer::start(&pair, "body_seconds = 3600");
    let mut roots = rustls::RootCertStore::empty();
    let certificate = pair.certificate.as_bytes();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(certificate).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = std::sync::Arc::new(config);
    let body = json!({"text": "You are nice"}).to_string();
    let length = body.len();
    let whole = format!("X-API-Key: {DEMO_KEY}\r\nContent-Length: {length}\r\n\r\n{body}");
    for (rest, expected) in [(whole.as_str(), "200"), ("Content-Length: 9\r\n\r\n", "401")] {
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(std::sync::Arc::clone(&config), name).unwrap();
        let socket = TcpStream::connect(tls_server.server.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut stream = rustls::StreamOwned::new(session, socket);
        write!(stream, "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n{rest}").unwrap();
        if expected == "200" {
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut line = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8_lossy(&line), format!("HTTP/1.1 {expected}"));
    }
}
