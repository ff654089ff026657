use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use guesthouse_tests::artifacts::{self, temporary_folder};
use guesthouse_tests::{DEMO_KEY, Server, Setup, environment};
use serde_json::{Value, json};

const KEY: &str = "GUESTHOUSE_KEY";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(environment::host());
    command.env_remove(KEY).arg("predict").args(arguments).stdin(Stdio::null());
    command
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn error(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect()
}

/// An artifact that returns a byte string, or a text.
fn echo(datatype: &str, folder: &Path) -> PathBuf {
    let name = format!("echo-{}", datatype.to_lowercase());
    let manifest = folder.join(format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\nversion = \"1.0.0\"\n[parameters]\ndatatype = \"{datatype}\"\n\
         row_shape = \"\"\nmax_batch_size = \"8\"\n[golden]\nfile = \"echo.jsonl\"\n"
    );
    fs::write(&manifest, text).unwrap();
    let golden = r#"{"inputs": {"INPUT0": "AAAA"}, "outputs": {"OUTPUT0": "AAAA"}}"#;
    fs::write(folder.join("echo.jsonl"), golden).unwrap();
    let output = folder.join(format!("{name}-1.0.0.wasm"));
    let component = environment::guests().join("identity.wasm");
    let [manifest, component, out] =
        [&manifest, &component, &output].map(|path| path.to_string_lossy());
    let files = ["--manifest", &manifest, "--component", &component, "--output", &out];
    let packed = artifacts::run_host(&[&["pack"], &files[..]].concat());
    assert!(packed.status.success(), "{packed:?}");
    output
}

#[test]
fn artifact_predicts_like_its_server() {
    let folder = temporary_folder();
    let (bytes, text) = (echo("BYTES", folder.path()), echo("TEXT", folder.path()));
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    fs::write(pictures.join("b"), [0xff, 0, 1]).unwrap();
    fs::write(pictures.join("a"), "a \"text\"; é").unwrap();
    let sum = artifacts::fixture("row_sum", folder.path());
    let artifacts = vec![bytes.clone(), text.clone(), sum.clone()];
    let server = Server::start(&Setup { artifacts, ..Setup::default() });
    let url = format!("http://{}", server.address());
    let a = format!("INPUT0={}", pictures.join("a").display());
    let all = format!("INPUT0={}", pictures.display());
    let rows = "@".to_owned() + &folder.path().join("rows.jsonl").to_string_lossy();
    fs::write(&rows[1..], "{\"INPUT0\": [1, 2]}\n{\"INPUT0\": [0.5]}\n").unwrap();
    for (artifact, model, input, expected) in [
        (&sum, "row_sum", ["--json", r#"{"INPUT0": [1, 2.5]}"#], json!([{"OUTPUT0": 3.5}])),
        (&sum, "row_sum", ["--json", &rows], json!([{"OUTPUT0": 3.0}, {"OUTPUT0": 0.5}])),
        (&text, "echo-text", ["--file", &a], json!([{"OUTPUT0": "a \"text\"; é"}])),
        (
            &bytes,
            "echo-bytes",
            ["--file", &all],
            json!([
                {"file": "a", "outputs": {"OUTPUT0": "YSAidGV4dCI7IMOp"}},
                {"file": "b", "outputs": {"OUTPUT0": "/wAB"}},
            ]),
        ),
    ] {
        let local =
            command(&[&[&*artifact.to_string_lossy()], &input[..]].concat()).output().unwrap();
        assert_eq!(local.status.code(), Some(0), "{local:?}");
        assert_eq!(Value::from(lines(&local)), expected);

        let at_server = ["--server", &url, "--model", model, "--version", "^1.0"];
        let arguments = [&at_server[..], &input].concat();
        let mut remote = command(&arguments);
        let remote = remote.env(KEY, DEMO_KEY).output().unwrap();
        assert_eq!(remote.status.code(), Some(0), "{remote:?}");
        let inner = |line: &Value| line.get("outputs").unwrap_or(line)["OUTPUT0"].clone();
        let served = lines(&remote);
        let expected: Vec<_> = expected.as_array().unwrap().iter().map(inner).collect();
        assert_eq!(served.iter().map(inner).collect::<Vec<_>>(), expected);

        // The same request by curl, through a shell.
        let printed = command(&[&arguments[..], &["--curl"]].concat()).env(KEY, DEMO_KEY).output();
        let printed = String::from_utf8(printed.unwrap().stdout).unwrap();
        assert!(printed.contains("$GUESTHOUSE_KEY") && !printed.contains(DEMO_KEY), "{printed}");
        let script = printed.lines().map(|line| format!("{line}; echo;")).collect::<String>();
        let by_curl = Command::new("sh").args(["-c", &script]).env(KEY, DEMO_KEY).output().unwrap();
        let by_curl: Vec<_> = lines(&by_curl).iter().map(inner).collect();
        assert_eq!(by_curl, expected, "{printed}");
    }
}

#[test]
fn rejected_rows_keep_their_places() {
    let folder = temporary_folder();
    let sum = artifacts::fixture("row_sum", folder.path());
    let server = Server::start(&Setup { artifacts: vec![sum.clone()], ..Setup::default() });
    let url = format!("http://{}", server.address());
    let sum = sum.to_string_lossy();
    for place in [&[&*sum][..], &["--server", &url, "--model", "row_sum"]] {
        let mut child = command(place)
            .env(KEY, DEMO_KEY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let rows = b"{\"INPUT0\": [1]} {\"INPUT0\": [\"a\"]} {\"INPUT0\": [2]}";
        child.stdin.take().unwrap().write_all(rows).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let found = lines(&output);
        assert_eq!((&found[0]["OUTPUT0"], &found[2]["OUTPUT0"]), (&json!(1.0), &json!(2.0)));
        assert_eq!(found[1]["error"]["error_code"], "malformed_request", "{found:?}");
        assert!(error(&output).contains("1 of 3 rows"), "{output:?}");
    }
    // What is wrong for every row ends the command.
    let (model, version) = (["--model", "other"], ["--version", "9"]);
    let two = ["--json", r#"{"INPUT0": [1]} {"INPUT0": [1]}"#];
    for (more, key, expected) in [
        ([&model[..], &two].concat(), DEMO_KEY, "not_found"),
        ([&["--model", "row_sum"][..], &version, &two].concat(), DEMO_KEY, "not_found"),
        ([&["--model", "row_sum"][..], &two].concat(), "wrong", "unauthorized"),
    ] {
        let arguments = [&["--server", &url][..], &more].concat();
        let output = command(&arguments).env(KEY, key).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.is_empty() && error(&output).contains(expected), "{output:?}");
    }
}

/// A server that answers with these responses, one connection each, and then with the last one.
fn scripted(responses: Vec<(u16, &'static str, &'static str)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for number in 0.. {
            let (status, header, body) = responses[usize::min(number, responses.len() - 1)];
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            std::io::copy(&mut reader.take(length), &mut std::io::sink()).unwrap();
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status} x\r\n{header}Connection: close\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            );
        }
    });
    address
}

#[test]
fn busy_server_is_asked_again_until_the_deadline() {
    let busy = r#"{"error_code": "overloaded", "message": "try later", "request_id": "r1"}"#;
    let (rate, good) = ((429, "Retry-After: 1\r\n", busy), (200, "", r#"{"y": 1}"#));
    let predict = |server: SocketAddr, deadline: &str| {
        let server = format!("http://{server}");
        let arguments = ["--server", &server, "--json", "{}", "--deadline", deadline];
        command(&arguments).output().unwrap()
    };
    let answered = predict(scripted(vec![(503, "", busy), rate, good]), "30s");
    assert_eq!(answered.status.code(), Some(0), "{answered:?}");
    assert_eq!(lines(&answered), [json!({"y": 1})]);
    // The time that the server asks for would pass the deadline.
    for response in [(503, "Retry-After: 3600\r\n", busy), (429, "", busy)] {
        let given_up = predict(scripted(vec![response]), "500ms");
        assert_eq!(given_up.status.code(), Some(5), "{given_up:?}");
        assert_eq!(error(&given_up), "error: try later (overloaded, request r1)");
    }
    // Not retried: the second response would be good.
    for status in [500, 502, 504] {
        let failed = predict(scripted(vec![(status, "", busy), good]), "30s");
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    }
    let page = predict(scripted(vec![(200, "", "<html>")]), "30s");
    assert_eq!(page.status.code(), Some(1), "{page:?}");
}

#[test]
fn invalid_prediction_arguments_are_explained() {
    let folder = temporary_folder();
    let sum = artifacts::fixture("row_sum", folder.path());
    let sum = sum.to_string_lossy();
    let file = format!("INPUT0={sum}");
    let server = ["--server", "http://127.0.0.1:1"];
    for (arguments, code, expected) in [
        (vec![], 2, "--server"),
        (vec![&*sum, server[0], server[1]], 2, "cannot be used with"),
        (vec![&*sum, "--curl"], 2, "--server"),
        (vec![server[0], server[1], "--version", "x.y"], 2, "version is selected by"),
        (vec![server[0], server[1], "--model", "No Name"], 2, "name"),
        (vec![&*sum, "--file", "INPUT0"], 2, "image=picture.jpg"),
        (vec![&*sum, "--deadline", "soon"], 2, "deadline"),
        (vec![&*sum, "--file", &file, "--json", r#"{"INPUT0": 1}"#], 2, "twice"),
        (vec![&*sum, "--file", &file], 1, "no input `INPUT0` of bytes"),
        (vec![&*sum, "--json", "[1]"], 1, "row 1"),
        (vec![&*sum, "--json", "@/nowhere"], 1, "/nowhere"),
        (vec!["/nowhere.wasm", "--json", "{}"], 1, "/nowhere.wasm"),
        (vec![server[0], server[1], "--json", "{}"], 1, "no response from http://127.0.0.1:1"),
    ] {
        let output = command(&arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}
