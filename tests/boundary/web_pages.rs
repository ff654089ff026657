use guesthouse_tests::{DEMO_KEY, Server, Setup, client};
use reqwest::Method;
use reqwest::blocking::Response;

const ORIGIN: &str = "https://example.org";

fn server(section: &str) -> Server {
    let mut setup = Setup::toxicity();
    setup.config.push_str(section);
    Server::start(&setup)
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

fn cors_headers(response: &Response) -> Vec<&str> {
    let names = response.headers().keys().map(|name| name.as_str());
    names.filter(|name| name.starts_with("access-control-")).collect()
}

/// Sends a preflight request and the request itself, as a browser does.
fn ask(server: &Server, origin: &str) -> [Response; 2] {
    let client = client::http().build().unwrap();
    let url = server.url("/v1/predict");
    let may = client.request(Method::OPTIONS, &url).header("Origin", origin);
    let may = may.header("Access-Control-Request-Method", "POST");
    let may = may.header("Access-Control-Request-Headers", "content-type,x-api-key");
    let asked = client.post(&url).header("Origin", origin).header("X-API-Key", DEMO_KEY);
    let asked =
        asked.header("Content-Type", "application/json").body(r#"{"text": "You are nice"}"#);
    [may.send().unwrap(), asked.send().unwrap()]
}

#[test]
fn cors_is_disabled_by_default() {
    let server = server("");
    let [may, asked] = ask(&server, ORIGIN);
    assert_eq!((may.status().as_u16(), asked.status().as_u16()), (405, 200));
    assert!(cors_headers(&may).is_empty() && cors_headers(&asked).is_empty());
}

#[test]
fn cors_admits_configured_origins_only() {
    let server =
        server("\n[cors]\norigins = [\"https://example.org\", \"http://localhost:3000\"]\n");
    for origin in [ORIGIN, "http://localhost:3000"] {
        let [may, asked] = ask(&server, origin);
        // Browsers send no key with a preflight request.
        assert_eq!(may.status(), 204);
        assert_eq!(header(&may, "access-control-allow-origin"), Some(origin));
        let headers = header(&may, "access-control-allow-headers").unwrap().to_lowercase();
        for name in
            ["x-api-key", "authorization", "content-type", "idempotency-key", "content-encoding"]
        {
            assert!(headers.split(", ").any(|other| other == name), "{name}: {headers}");
        }
        assert!(header(&may, "access-control-allow-methods").unwrap().contains("POST"));
        assert!(header(&may, "access-control-max-age").is_some());
        assert!(header(&may, "x-request-id").is_some());
        assert_eq!(asked.status(), 200);
        assert_eq!(header(&asked, "access-control-allow-origin"), Some(origin));
        let exposed = header(&asked, "access-control-expose-headers").unwrap().to_lowercase();
        for name in ["x-request-id", "x-model-version", "x-route-reason", "retry-after"] {
            assert!(exposed.split(", ").any(|other| other == name), "{name}: {exposed}");
        }
        assert!(header(&asked, "access-control-allow-credentials").is_none());
        assert!(header(&asked, "vary").unwrap().to_lowercase().contains("origin"));
    }
    for origin in ["https://example.org.evil", "http://example.org", "null", "HTTPS://EXAMPLE.ORG"]
    {
        let [may, asked] = ask(&server, origin);
        assert_eq!((may.status().as_u16(), asked.status().as_u16()), (405, 200), "{origin}");
        assert!(cors_headers(&may).is_empty() && cors_headers(&asked).is_empty(), "{origin}");
        // A cached response must not be used for an allowed origin.
        assert!(header(&asked, "vary").unwrap().to_lowercase().contains("origin"));
    }
    // Errors of all endpoints are readable too.
    let client = client::http().build().unwrap();
    for (path, status) in [("/v1/predict", 405), ("/absent", 404), ("/models", 401)] {
        let response = client.get(server.url(path)).header("Origin", ORIGIN).send().unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(header(&response, "access-control-allow-origin"), Some(ORIGIN), "{path}");
    }
    // An `OPTIONS` request that is not a preflight is not supported.
    let options = client.request(Method::OPTIONS, server.url("/v1/predict")).send().unwrap();
    assert_eq!(options.status(), 405);
    // The admin API does not support CORS.
    let admin = format!("http://{}/admin/v1/status", server.admin_address());
    assert!(cors_headers(&client.get(admin).header("Origin", ORIGIN).send().unwrap()).is_empty());
}

#[test]
fn cors_admits_every_origin_with_a_wildcard() {
    let server = server("\n[cors]\norigins = [\"*\"]\n");
    let [may, asked] = ask(&server, "https://anybody.example");
    assert_eq!((may.status().as_u16(), asked.status().as_u16()), (204, 200));
    for response in [may, asked] {
        assert_eq!(header(&response, "access-control-allow-origin"), Some("*"));
        assert!(header(&response, "access-control-allow-credentials").is_none());
    }
}

/// The documentation page needs no key, and may load nothing from other origins.
#[test]
fn the_documentation_page_has_a_strict_security_policy() {
    let server = server("");
    let client = client::http().build().unwrap();
    for (path, kind) in [("/docs", "text/html"), ("/docs/docs.js", "text/javascript")] {
        let page = client.get(server.url(path)).send().unwrap();
        assert_eq!(page.status(), 200, "{path}");
        assert!(header(&page, "content-type").unwrap().starts_with(kind), "{path}");
        let policy = header(&page, "content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

/// Behind a proxy with a path prefix, the page still finds its files and the API.
#[test]
fn the_documentation_page_works_behind_a_path_prefix() {
    let untrusting = server("");
    let trusting = server("\n[proxy]\ntrusted = [\"192.0.2.0/24\", \"127.0.0.1\"]\n");
    let client = client::http().build().unwrap();
    for file in ["/docs", "/docs/docs.js", "/docs/request.js"] {
        let text = client.get(untrusting.url(file)).send().unwrap().text().unwrap();
        for absolute in ["\"/docs", "\"/openapi", "\"/models", "`/models", "`${window.location"] {
            assert!(!text.contains(absolute), "{file}: {absolute}");
        }
    }
    let servers = |server: &Server, path: &str, prefix: Option<&str>| {
        let request = client.get(server.url(path)).header("X-API-Key", DEMO_KEY);
        let request =
            prefix.into_iter().fold(request, |it, prefix| it.header("X-Forwarded-Prefix", prefix));
        let document: serde_json::Value = request.send().unwrap().json().unwrap();
        document["servers"][0]["url"].as_str().unwrap().to_owned()
    };
    for (path, relative) in [("/openapi.json", "."), ("/models/toxicity/openapi.json", "../..")] {
        // The relative URL leads from the document to the root of the paths.
        let document = reqwest::Url::parse(&format!("https://example.org/a/b{path}")).unwrap();
        assert_eq!(document.join(relative).unwrap().path(), "/a/b/");
        for prefix in [None, Some("/a/b")] {
            assert_eq!(servers(&untrusting, path, prefix), relative);
        }
        assert_eq!(servers(&trusting, path, None), relative);
        assert_eq!(servers(&trusting, path, Some("/a/b/")), "/a/b");
        for bad in ["//evil.example", "https://evil.example", "a", "/a/../b"] {
            assert_eq!(servers(&trusting, path, Some(bad)), relative, "{bad}");
        }
    }
}
