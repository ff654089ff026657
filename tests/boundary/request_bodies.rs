use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::encoding::{gzip, zlib};
use guesthouse_tests::{DEMO_KEY, HttpResponse, Server, Setup, client};
use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

const PICTURE: &str = "/models/text-direction/predict";
const PICTURES: &str = "/models/text-direction/batch_predict";

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

type Encode = fn(&[u8]) -> Vec<u8>;

const ENCODINGS: [(&str, Encode); 2] = [("gzip", gzip), ("zstd", zstd)];

fn encoded(server: &Server, path: &str, encoding: &str, body: &[u8]) -> HttpResponse {
    server.send("POST", path, &[("Content-Encoding", encoding)], body)
}

fn is(answer: &HttpResponse) -> (u16, Option<&str>) {
    (answer.status, answer.error_code())
}

#[test]
fn compressed_bodies_equal_uncompressed_ones() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"texts": vec!["You are nice"; 500]});
    let plain = server.post("/v1/batch_predict", &body);
    assert_eq!(plain.status, 200);
    let body = body.to_string().into_bytes();
    for (encoding, encode) in ENCODINGS {
        let (half, other_half) = body.split_at(body.len() / 2);
        let in_members = [encode(half), encode(b""), encode(other_half)].concat();
        for sent in [encode(&body), in_members] {
            let answer = encoded(&server, "/v1/batch_predict", encoding, &sent);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body["results"], plain.body["results"]);
        }
        let whole = encode(&body);
        for bad in
            [&whole[..whole.len() - 1], &whole[..5], b"", b"{}", &[&whole[..], b"x"].concat()]
        {
            let answer = encoded(&server, "/v1/batch_predict", encoding, bad);
            assert_eq!(is(&answer), (400, Some("malformed_request")), "{encoding}");
        }
    }
    for known in ["identity", "GZIP", "x-gzip", "deflate"] {
        let sent = match known {
            "identity" => body.clone(),
            "deflate" => zlib(&body),
            _ => gzip(&body),
        };
        assert_eq!(encoded(&server, "/v1/batch_predict", known, &sent).status, 200, "{known}");
    }
    for unknown in ["br", "gzip, gzip", "gzip, identity", "", "zstd,"] {
        let answer = encoded(&server, "/v1/batch_predict", unknown, &gzip(&body));
        assert_eq!(is(&answer), (415, Some("unsupported_media_type")), "{unknown}");
    }
    let twice = [("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")];
    let answer = server.send("POST", "/v1/batch_predict", &twice, &gzip(&gzip(&body)));
    assert_eq!(is(&answer), (415, Some("unsupported_media_type")));
    server.assert_healthy();
}

#[test]
fn a_decompression_bomb_gets_413_in_bounded_memory() {
    let server = Server::start(&Setup::toxicity());
    // A gigabyte of white space, with which JSON may begin.
    let piece = vec![b' '; 16 << 20];
    let gzip_piece = gzip(&piece);
    let mut bomb = zstd::Encoder::new(Vec::new(), 3).unwrap();
    (0..64).for_each(|_| bomb.write_all(&piece).unwrap());
    let zstd_bomb = bomb.finish().unwrap();
    assert!(zstd_bomb.len() < 128 << 10);
    let before = server.peak_memory_bytes();
    for _ in 0..8 {
        for (encoding, bomb) in [("zstd", &zstd_bomb), ("gzip", &gzip_piece.repeat(64))] {
            let answer = encoded(&server, "/v1/predict", encoding, bomb);
            assert_eq!(is(&answer), (413, Some("payload_too_large")), "{encoding}");
        }
    }
    let more = server.peak_memory_bytes() - before;
    assert!(more < 96 << 20, "{more} bytes more");
    // Headers only: they decompress to nothing, and are too long all the same.
    let nothing = gzip(b"").repeat((9 << 20) / gzip(b"").len());
    let answer = encoded(&server, "/v1/predict", "gzip", &nothing);
    assert_eq!(is(&answer), (413, Some("payload_too_large")));
    // A body of exactly the limit is accepted.
    let limit = 8 << 20;
    let mut body = json!({"text": "You are nice"}).to_string().into_bytes();
    body.resize(limit, b' ');
    for (encoding, encode) in ENCODINGS {
        assert_eq!(encoded(&server, "/v1/predict", encoding, &encode(&body)).status, 200);
        let longer = [&body[..], b" "].concat();
        assert_eq!(encoded(&server, "/v1/predict", encoding, &encode(&longer)).status, 413);
    }
    server.assert_healthy();
}

/// Starting a gzip member or a zstd frame takes as long as decompressing kilobytes.
#[test]
fn the_number_of_empty_members_is_bounded() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "You are nice"}).to_string().into_bytes();
    let skippable = b"\x50\x2a\x4d\x18\x00\x00\x00\x00".to_vec();
    for (encoding, nothing, whole) in [
        ("gzip", gzip(b""), gzip(&body)),
        ("gzip", gzip(b" "), gzip(&body)),
        ("zstd", zstd(b""), zstd(&body)),
        ("zstd", skippable, zstd(&body)),
    ] {
        let some = [&nothing.repeat(1000)[..], &whole].concat();
        assert_eq!(encoded(&server, "/v1/predict", encoding, &some).status, 200, "{encoding}");
        let most = (8 << 20) / nothing.len() - 100;
        let many = [&nothing.repeat(most)[..], &whole].concat();
        let answer = encoded(&server, "/v1/predict", encoding, &many);
        assert_eq!(is(&answer), (413, Some("payload_too_large")), "{encoding}");
    }
    server.assert_healthy();
}

#[test]
fn decompressed_bytes_count_as_bodies_in_flight() {
    let mut setup = Setup::toxicity();
    setup.config.push_str(
        "\n[limits]\nbody_bytes = 1000000\nbodies_in_flight_bytes = 1000000\nbody_seconds = 3600\n",
    );
    let server = Server::start(&setup);
    let mut body = json!({"text": "You are nice"}).to_string().into_bytes();
    body.resize(900_000, b' ');
    assert_eq!(encoded(&server, "/v1/predict", "gzip", &gzip(&body)).status, 200);
    // Another request has sent most of its body, but not the end.
    let mut other = TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "POST /v1/predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\n\
         Content-Length: 900000\r\n\r\n"
    );
    other.write_all(head.as_bytes()).unwrap();
    other.write_all(&body[..890_000]).unwrap();
    // Its body has arrived when another one of the same size is not admitted any more. The question
    // takes no room.
    server
        .eventually("the body is counted", |server| !server.admits_body("/v1/predict", body.len()));
    for (encoding, encode) in ENCODINGS {
        let answer = encoded(&server, "/v1/predict", encoding, &encode(&body));
        assert_eq!(is(&answer), (503, Some("overloaded")), "{encoding}");
    }
    // A small body is admitted, whatever memory decompressing it takes.
    for (encoding, encode) in ENCODINGS {
        let small = json!({"text": "You are nice"}).to_string();
        let answer = encoded(&server, "/v1/predict", encoding, &encode(small.as_bytes()));
        assert_eq!(answer.status, 200, "{encoding}");
    }
    // The room is released with the connection.
    drop(other);
    let full = || encoded(&server, "/v1/predict", "gzip", &gzip(&body)).status;
    server.eventually("the room is released", |_| full() == 200);
}

fn get(client: &Client, server: &Server, path: &str, accepted: &str) -> Response {
    client.get(server.url(path)).header("Accept-Encoding", accepted).send().unwrap()
}

/// A client that does not decompress responses.
fn plain_client() -> Client {
    client::http().no_gzip().no_zstd().build().unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn large_responses_are_compressed_on_request() {
    let server = Server::start(&Setup::toxicity());
    let client = plain_client();
    let ask = |texts: usize, text: &str, accepted: &str| {
        let request = client.post(server.url("/v1/batch_predict")).header("X-API-Key", DEMO_KEY);
        let request = request.header("X-Request-Id", "one").header("Accept-Encoding", accepted);
        request.json(&json!({"texts": vec![text; texts]})).send().unwrap()
    };
    let plain = ask(200, "You are nice", "identity");
    assert_eq!(header(&plain, "content-encoding"), None);
    let plain = plain.bytes().unwrap();
    for (accepted, encoding) in
        [("gzip", "gzip"), ("zstd", "zstd"), ("gzip, zstd", "zstd"), ("*;q=0.1, gzip", "gzip")]
    {
        let response = ask(200, "You are nice", accepted);
        assert_eq!(header(&response, "content-encoding"), Some(encoding), "{accepted}");
        assert_eq!(header(&response, "x-request-id"), Some("one"));
        assert!(header(&response, "vary").unwrap().contains("accept-encoding"));
        let bytes = response.bytes().unwrap();
        assert!(bytes.len() < plain.len() / 4);
        assert_eq!(decode(encoding, &bytes), plain);
    }
    // Small responses are not compressed, nor are those for clients that accept only other
    // encodings.
    assert_eq!(header(&ask(2, "You are nice", "gzip"), "content-encoding"), None);
    for other in ["br", "gzip;q=0", "identity;q=0", "*;q=0", "br, identity;q=0.0"] {
        let response = ask(200, "You are nice", other);
        assert_eq!(response.status(), 200, "{other}");
        assert_eq!(header(&response, "content-encoding"), None, "{other}");
    }
    // Error responses are compressed too.
    let refused = ask(50, "", "gzip");
    assert_eq!(refused.status(), 422);
    assert_eq!(header(&refused, "content-encoding"), Some("gzip"));
    let body: Value = serde_json::from_slice(&decode("gzip", &refused.bytes().unwrap())).unwrap();
    assert_eq!(
        (&body["error_code"], &body["request_id"]),
        (&json!("unacceptable_input"), &json!("one"))
    );
    let metrics = get(&client, &server, "/metrics", "zstd");
    assert_eq!(header(&metrics, "content-encoding"), Some("zstd"));
    assert!(decode("zstd", &metrics.bytes().unwrap()).starts_with(b"# HELP guesthouse_"));
}

fn decode(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    if encoding == "zstd" {
        return zstd::decode_all(bytes).unwrap();
    }
    let mut decoder = flate2::write::MultiGzDecoder::new(Vec::new());
    decoder.write_all(bytes).unwrap();
    decoder.finish().unwrap()
}

/// The PNG files of the oracle, by name.
fn pictures() -> Vec<(String, Vec<u8>)> {
    let path = format!("{}/data/text-direction/oracle.jsonl", env!("CARGO_MANIFEST_DIR"));
    let files = fs::read_to_string(path).unwrap();
    let files = files.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    files
        .map(|file| {
            let name = file["name"].as_str().unwrap().to_owned();
            (name, BASE64.decode(file["image"].as_str().unwrap()).unwrap())
        })
        .filter(|(_, bytes)| bytes.starts_with(b"\x89PNG"))
        .collect()
}

fn send(request: RequestBuilder) -> (u16, Value) {
    let response = request.header("X-API-Key", DEMO_KEY).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

fn assert_refused(answer: &(u16, Value), status: u16, code: &str) {
    assert_eq!((answer.0, &answer.1["error_code"]), (status, &json!(code)), "{answer:?}");
}

#[test]
fn files_in_forms_and_raw_score_the_same_as_in_json() {
    let server = Server::start(&Setup::text_direction());
    let client = plain_client();
    let folder = temporary_folder();
    let pictures: Vec<_> = pictures().into_iter().take(12).collect();
    let mut in_batches = Form::new();
    let mut scores = Vec::new();
    for (number, (name, bytes)) in pictures.iter().enumerate() {
        let wanted = server.post(PICTURE, &json!({"image": BASE64.encode(bytes)}));
        assert_eq!(wanted.status, 200);
        let score = &wanted.body["score"];
        let part =
            || Part::bytes(bytes.clone()).file_name("line.png").mime_str("image/png").unwrap();
        let form = Form::new().part("image", part()).text("request_id", number.to_string());
        let (status, answer) = send(client.post(server.url(PICTURE)).multipart(form));
        assert_eq!((status, &answer["score"]), (200, score), "{name}");
        assert_eq!(answer["request_id"], number.to_string());
        let octets = client.post(server.url(PICTURE)).body(bytes.clone());
        let (status, answer) = send(octets.header("Content-Type", "application/octet-stream"));
        assert_eq!((status, &answer["score"]), (200, score), "{name}");
        // Compressed in transit.
        let octets = client.post(server.url(PICTURE)).body(zstd(bytes));
        let octets = octets.header("Content-Encoding", "zstd");
        let (status, answer) = send(octets.header("Content-Type", "application/octet-stream"));
        assert_eq!((status, &answer["score"]), (200, score), "{name}");
        let file = folder.path().join("line.png");
        fs::write(&file, bytes).unwrap();
        let form = format!("image=@{}", file.display());
        let key = format!("X-API-Key: {DEMO_KEY}");
        let curl = Command::new("curl")
            .args(["-sS", "-H", &key, "-F", &form, &server.url(PICTURE)])
            .output()
            .unwrap();
        let answer: Value = serde_json::from_slice(&curl.stdout).unwrap();
        assert_eq!(&answer["score"], score, "{name}: {answer}");
        in_batches = in_batches.part("image", part());
        scores.push(score.as_f64().unwrap());
    }
    let (status, answer) = send(client.post(server.url(PICTURES)).multipart(in_batches));
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), scores.len());
    for (result, score) in results.iter().zip(scores) {
        assert!((result["score"].as_f64().unwrap() - score).abs() < 1e-6);
    }
    server.assert_healthy();
}

#[test]
fn texts_in_forms_are_validated_as_in_json() {
    let server = Server::start(&Setup::toxicity());
    let client = plain_client();
    let single = |form: Form| send(client.post(server.url("/v1/predict")).multipart(form));
    let batch = |form: Form| send(client.post(server.url("/v1/batch_predict")).multipart(form));
    let text = |text: &'static str| Form::new().text("text", text);
    let (status, answer) = single(text("  You are nice\n"));
    let wanted = server.post("/v1/predict", &json!({"text": "You are nice"}));
    assert_eq!((status, &answer["score"]), (200, &wanted.body["score"]));
    assert_refused(&single(text("  ")), 422, "unacceptable_input");
    let long = Form::new().text("text", "a".repeat(2001));
    assert_refused(&single(long), 422, "unacceptable_input");
    let not_utf8 = Form::new().part("text", Part::bytes(&b"\xff\xfe"[..]));
    assert_refused(&single(not_utf8), 400, "malformed_request");
    for bad in [
        Form::new(),
        Form::new().text("other", "a"),
        text("a").text("other", "a"),
        text("a").text("text", "b"),
        text("a").text("request_id", ""),
        text("a").text("request_id", "one").text("request_id", "two"),
    ] {
        assert_refused(&single(bad), 400, "malformed_request");
    }
    for names in [["text", "text"], ["texts", "texts"]] {
        let form =
            names.into_iter().fold(Form::new(), |form, name| form.text(name, "You are nice"));
        let (status, answer) = batch(form.text("request_id", "mine"));
        assert_eq!(
            (status, answer["results"].as_array().map(Vec::len)),
            (200, Some(2)),
            "{answer}"
        );
        assert_eq!(answer["request_id"], "mine");
    }
    assert_refused(&batch(Form::new()), 400, "malformed_request");
    assert_refused(&batch(text("a").text("instances", "[]")), 400, "malformed_request");
    let answer = batch(text("fine").text("text", " "));
    assert_refused(&answer, 422, "unacceptable_input");
    assert_eq!(answer.1["details"][0]["row"], 1);
    let rows = |count| (0..count).fold(Form::new(), |form, _| form.text("text", "a"));
    assert_eq!(batch(rows(1024)).0, 200);
    assert_refused(&batch(rows(1100)), 422, "unacceptable_input");
    // A text can be the whole body of a single prediction, but not of a batch.
    let octets = |path: &str, body: &'static [u8]| {
        let request = client.post(server.url(path)).body(body);
        send(request.header("Content-Type", "application/octet-stream"))
    };
    assert_eq!(octets("/v1/predict", b"You are nice").1["score"], wanted.body["score"]);
    assert_refused(&octets("/v1/predict", b"\xff"), 400, "malformed_request");
    assert_refused(&octets("/v1/predict", b""), 422, "unacceptable_input");
    assert_refused(&octets("/v1/batch_predict", b"a"), 415, "unsupported_media_type");
    server.assert_healthy();
}

#[test]
fn malformed_forms_are_rejected() {
    let server = Server::start(&Setup::toxicity());
    let whole =
        "--b\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nYou are nice\r\n--b--\r\n";
    let send = |media_type: &str, body: &[u8]| {
        server.send("POST", "/v1/predict", &[("Content-Type", media_type)], body)
    };
    assert_eq!(send("multipart/form-data; boundary=b", whole.as_bytes()).status, 200);
    assert_eq!(send("Multipart/Form-Data; boundary=\"b\"", whole.as_bytes()).status, 200);
    for media_type in [
        "multipart/form-data".to_owned(),
        "multipart/form-data; boundary=".to_owned(),
        "multipart/form-data; boundary=other".to_owned(),
        format!("multipart/form-data; boundary={}", "b".repeat(71)),
    ] {
        let answer = send(&media_type, whole.as_bytes());
        assert_eq!(is(&answer), (400, Some("malformed_request")), "{media_type}");
    }
    let answer = send("multipart/mixed; boundary=b", whole.as_bytes());
    assert_eq!(is(&answer), (415, Some("unsupported_media_type")));
    let close = whole.find("--b--").unwrap() + 4;
    for end in 0..close {
        let answer = send("multipart/form-data; boundary=b", &whole.as_bytes()[..end]);
        assert_eq!(is(&answer), (400, Some("malformed_request")), "{end}");
    }
    let long = format!("X-Long: {}\r\nContent-Disposition", "a".repeat(9000));
    let many = format!("{}Content-Disposition", "X-A: b\r\n".repeat(100));
    for header in [long, many, "X-Other".to_owned()] {
        let body = whole.replace("Content-Disposition", &header);
        let answer = send("multipart/form-data; boundary=b", body.as_bytes());
        assert_eq!(is(&answer), (400, Some("malformed_request")));
    }
    let part = "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\r\n";
    let many = format!("{}--b--\r\n", part.repeat(100_000));
    let before = server.peak_memory_bytes();
    let answer = send("multipart/form-data; boundary=b", many.as_bytes());
    assert_eq!(is(&answer), (422, Some("unacceptable_input")));
    let more = server.peak_memory_bytes() - before;
    assert!(more < 64 << 20, "{more} bytes more");
    server.assert_healthy();
}
