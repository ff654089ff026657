use std::fs;
use std::process::{Command, Output};

use guesthouse_tests::artifacts::{run_host, temporary_folder};
use guesthouse_tests::{Server, Setup, Signal, environment};
use serde_json::json;

fn check(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(environment::host());
    command.args(["config", "check"]).args(arguments).envs(variables.iter().copied());
    command.output().unwrap()
}

#[test]
fn a_configuration_is_checked_without_being_served() {
    let folder = temporary_folder();
    let file = folder.path().join("guesthouse.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, "listen = \"127.0.0.1:1\"\n[limits]\nbatch_rows = 5\n").unwrap();
    assert!(check(&["--config", path], &[]).status.success());
    assert!(check(&[], &[]).status.success(), "no file is a good one");
    for (arguments, variables, word) in [
        (&["--config", path, "--set", "limits.batch_rows=0"][..], &[][..], "limits.batch_rows"),
        (&["--config", path, "--set", "limits.rows=1"], &[], "rows"),
        (&["--config", path], &[("GUESTHOUSE__LIMITS__BATCH_ROWS", "0")], "limits.batch_rows"),
        (&["--config", path], &[("GUESTHOUSE__LIMIT__X", "0")], "limit"),
        (&["--config", "absent.toml"], &[], "absent.toml"),
        (&[], &[("GUESTHOUSE_LISTEN", "nowhere")], "listen"),
        (
            &["--set", "tls.certificate=absent.pem", "--set", "tls.key=absent.pem"],
            &[],
            "absent.pem",
        ),
    ] {
        let output = check(arguments, variables);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {variables:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(word), "{error}");
    }
    // The command line has the last word.
    let good = check(&["--set", "limits.batch_rows=7"], &[("GUESTHOUSE__LIMITS__BATCH_ROWS", "0")]);
    assert!(good.status.success());
    let listen = [("GUESTHOUSE_LISTEN", "nowhere")];
    assert!(check(&["--set", "listen=127.0.0.1:1"], &listen).status.success());
    assert!(check(&["--listen", "127.0.0.1:1", "--demo"], &[]).status.success());
    fs::write(&file, "[limits]\nbatch_rows = 5\nfoo = 1\n").unwrap();
    let error = String::from_utf8(check(&["--config", path], &[]).stderr).unwrap();
    assert!(error.contains("line 3"), "{error}");
    assert!(run_host(&["config", "--help"]).status.success());
}

#[test]
fn a_running_server_takes_what_is_good_and_keeps_it_otherwise() {
    let setup = Setup::toxicity();
    let server = Server::start(&setup);
    let batch = json!({"texts": ["a", "b", "c"]});
    let status = || server.post("/v1/batch_predict", &batch).status;
    let share = |selector: &str| {
        let answer = server.send("GET", &format!("/models/toxicity/resolve{selector}"), &[], b"");
        answer.body["matches"][0]["share"].clone()
    };
    assert_eq!((status(), share("")), (200, json!(900_000)));

    let reload = |text: &str, message: &str| {
        let before = server.lines().len();
        fs::write(server.config(), text).unwrap();
        server.signal(Signal::HUP);
        server.wait_for_after(before, message, |line| line["message"] == message)
    };
    let bad = "configuration not reloaded: the last good one holds";
    for text in ["nonsense", "[limits]\nbatch_rows = 0\n"] {
        reload(text, bad);
        assert_eq!((status(), share("")), (200, json!(900_000)));
    }
    let split = setup.config.replace("900_000", "600_000").replace("100_000", "400_000");
    assert_ne!(split, setup.config);
    let line = reload(
        &format!("{split}\n[limits]\nbatch_rows = 2\nqueued_batches = 7\n"),
        "configuration reloaded",
    );
    assert_eq!(line["needs_restart"], "models, limits");
    assert_eq!((status(), share("")), (422, json!(600_000)));
    let line = reload(&split, "configuration reloaded");
    assert_eq!((status(), &line["needs_restart"]), (200, &json!("")));
}
