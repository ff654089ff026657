//! A server for one test, with its own ports, repository and state folder. It is killed when the
//! test ends.

mod process;

use std::fs;
use std::io::{BufRead as _, BufReader, PipeReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Instant;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{self, DEMO_KEY, HttpResponse};
use crate::{DEADLINE, artifacts, environment, eventually, eventually_some};

/// What a server serves, and how it is started.
#[derive(Debug, Default)]
pub struct Setup {
    /// Artifacts that are linked into the repository folder.
    pub artifacts: Vec<PathBuf>,
    /// The text of the configuration file.
    pub config: String,
    /// The state folder to use and keep. Without one, the server gets a copy of a state folder in
    /// which all packed artifacts are compiled.
    pub state: Option<PathBuf>,
    /// The limit of the server's address space in KiB, if any.
    pub address_space_kib: Option<u64>,
    /// The log filter; `info` by default.
    pub log: Option<String>,
    /// The address of all listeners; `127.0.0.1:0` by default.
    pub host: Option<String>,
    /// The failpoint to trigger, as `ACTION:N`: at its N-th file operation the server kills itself
    /// (`kill:3`) or fails as if the disk were full (`full:3`).
    pub failpoint: Option<String>,
    /// Additional arguments of `serve`.
    pub arguments: Vec<String>,
    /// Additional environment variables.
    pub environment: Vec<(String, String)>,
}

impl Setup {
    /// Both versions of the toxicity model with the demo configuration.
    ///
    /// # Panics
    /// The demo configuration is missing.
    pub fn toxicity() -> Self {
        let config = fs::read_to_string(environment::models().join("demo.toml"));
        let config = config.expect("the models have a demo.toml");
        let artifacts = vec![artifacts::toxicity("1.0.0"), artifacts::toxicity("2.0.0")];
        Self { artifacts, config, ..Self::default() }
    }

    /// The text direction model beside the toxicity model.
    pub fn text_direction() -> Self {
        let config = "default_model = \"toxicity\"\n".to_owned();
        let artifacts = vec![artifacts::toxicity("1.0.0"), artifacts::text_direction()];
        Self { artifacts, config, ..Self::default() }
    }

    /// The named test models, or all of them if `names` is empty, packed into `folder`.
    ///
    /// # Panics
    /// There is no such model.
    pub fn fixtures(folder: &Path, names: &[&str]) -> Self {
        let config = fs::read_to_string(artifacts::fixtures().join("fixtures.toml"));
        let config = config.expect("the fixtures have a configuration");
        let names = match names {
            [] => artifacts::fixture_names(),
            names => names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let artifacts = names.iter().map(|name| artifacts::fixture(name, folder)).collect();
        Self { artifacts, config, ..Self::default() }
    }

    /// The `misbehave` guest, with this time limit for each prediction, beside the toxicity model.
    pub fn misbehave(folder: &Path, predict_milliseconds: u32) -> Self {
        let config = format!(
            "default_model = \"toxicity\"\n[limits]\ninstance_memory_mib = 256\n\
             predict_milliseconds = {predict_milliseconds}\n"
        );
        let artifacts =
            vec![artifacts::toxicity("1.0.0"), artifacts::Misbehave::default().pack(folder)];
        Self { artifacts, config, ..Self::default() }
    }
}

/// A running server.
pub struct Server {
    pub(crate) child: Child,
    log: Arc<Log>,
    address: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
}

/// The log lines that the server has written so far.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    grown: Condvar,
    /// Set when the server has closed its log: no more lines follow.
    ended: AtomicBool,
    paused: Mutex<bool>,
    resumed: Condvar,
}

impl Server {
    /// Starts a server and waits until it has loaded everything.
    ///
    /// # Panics
    /// The server exits first.
    pub fn start(setup: &Setup) -> Self {
        Self::start_with(setup, |_repository| {})
    }

    /// Starts a server after `prepare` has changed its repository folder, and waits until it has
    /// loaded everything.
    ///
    /// # Panics
    /// The server exits first.
    pub fn start_with(setup: &Setup, prepare: impl FnOnce(&Path)) -> Self {
        let server = Self::start_loading_with(setup, prepare);
        server.wait_for("ready", |line| line["message"] == "ready");
        server.wait_for("the repository folder being read", |line| {
            line["message"] == "repository folder read"
        });
        server
    }

    /// Starts a server and waits until it listens.
    ///
    /// # Panics
    /// The server exits first.
    pub fn start_loading(setup: &Setup) -> Self {
        Self::start_loading_with(setup, |_repository| {})
    }

    /// Starts a server after `prepare` has changed its repository folder, and waits until it
    /// listens.
    ///
    /// # Panics
    /// The server exits first.
    pub fn start_loading_with(setup: &Setup, prepare: impl FnOnce(&Path)) -> Self {
        Self::launch(setup, prepare).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn launch(setup: &Setup, prepare: impl FnOnce(&Path)) -> Result<Self, String> {
        let folder = artifacts::temporary_folder();
        let repository = folder.path().join("repository");
        fs::create_dir(&repository).expect("the scratch folder is writable");
        for artifact in &setup.artifacts {
            let name = artifact.file_name().expect("an artifact is a file");
            fs::hard_link(artifact, repository.join(name)).expect("the artifact can be linked");
        }
        prepare(&repository);
        let config = folder.path().join("guesthouse.toml");
        fs::write(&config, &setup.config).expect("the scratch folder is writable");
        let state = setup.state.clone().unwrap_or_else(|| {
            let state = folder.path().join("state");
            copy_warm_state(&state);
            state
        });
        let (mut child, log) = spawn(&config, &repository, &state, setup);
        let listening = |message: &str| {
            let line = log.find(message, |line| line["message"] == message)?;
            let address = line["address"].as_str().and_then(|address| address.parse().ok());
            Some(address.expect("the address is logged"))
        };
        let addresses = ["admin listening", "grpc listening", "listening"].map(listening);
        match addresses {
            [Some(admin), Some(grpc), Some(address)] => {
                Ok(Self { child, log, address, grpc, admin, folder })
            }
            _ => {
                child.wait().expect("the server is our child");
                Err(format!("the server has exited: {:#?}", log.lines.lock()))
            }
        }
    }

    /// Starts a server and waits until it has loaded everything; returns none if it exits first.
    pub fn try_start(setup: &Setup) -> Option<Self> {
        let server = Self::launch(setup, |_repository| {}).ok()?;
        for message in ["ready", "repository folder read"] {
            server.log.find(message, |line| line["message"] == message)?;
        }
        Some(server)
    }

    /// The address of the public HTTP listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the gRPC listener.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Sends a request to the admin API with the demo admin key. A null `body` is not sent.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> HttpResponse {
        self.admin_with(method, path, &[], body)
    }

    /// The same with additional headers.
    pub fn admin_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> HttpResponse {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut all = vec![("X-API-Key", client::DEMO_ADMIN_KEY)];
        all.extend(headers);
        let url = format!("http://{}/admin/v1/{path}", self.admin);
        client::send(method, &url, &all, body.as_bytes())
    }

    /// The admin API's description of a model.
    pub fn model(&self, model: &str) -> Value {
        self.admin("GET", &format!("models/{model}"), &Value::Null).body
    }

    /// Uploads an artifact and waits until the deployment has ended; returns the operation.
    ///
    /// # Panics
    /// The file is not readable, the upload is rejected, or the deployment does not end before the
    /// [deadline](crate::DEADLINE).
    pub fn deploy(&self, artifact: &Path) -> Value {
        let mut progress = self.begin_deploy(artifact);
        let deadline = Instant::now() + DEADLINE;
        while progress["state"] == "running" {
            assert!(Instant::now() < deadline, "the deployment does not end: {progress}");
            // The request itself waits for the operation to change.
            let operation = progress["operation"].as_str().expect("an operation has an id");
            let path = format!("operations/{operation}?wait_seconds=30");
            progress = self.admin("GET", &path, &Value::Null).body;
        }
        assert!(progress["state"].is_string(), "{progress}");
        progress
    }

    /// Uploads an artifact and returns the running operation.
    ///
    /// # Panics
    /// The file is not readable, or the upload is rejected.
    pub fn begin_deploy(&self, artifact: &Path) -> Value {
        let artifact = fs::read(artifact).expect("the artifact is readable");
        let key = [("X-API-Key", client::DEMO_ADMIN_KEY)];
        let url = format!("http://{}/admin/v1/deploy", self.admin);
        let answer = client::send("POST", &url, &key, &artifact);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.body
    }

    /// The state folder, if the server was started without one of the test's own.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("guesthouse.toml")
    }

    /// The repository folder.
    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// Posts JSON with the demo key.
    pub fn post(&self, path: &str, body: &Value) -> HttpResponse {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    /// Sends any body with the demo key and additional headers. The content type is JSON unless a
    /// header says otherwise.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> HttpResponse {
        let mut all = vec![("X-API-Key", DEMO_KEY)];
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !typed {
            all.push(("Content-Type", "application/json"));
        }
        all.extend(headers);
        client::send(method, &self.url(path), &all, body)
    }

    /// Whether the server would read a body of this length now. The body is announced and not sent,
    /// so the question takes no room from other requests.
    ///
    /// # Panics
    /// The server responds with neither 100 nor 503.
    pub fn admits_body(&self, path: &str, length: usize) -> bool {
        match client::announce(self.address(), path, length) {
            100 => true,
            503 => false,
            status => panic!("{status}"),
        }
    }

    /// Gets a path without an API key.
    pub fn get(&self, path: &str) -> HttpResponse {
        client::send("GET", &self.url(path), &[], b"")
    }

    /// The metrics page in the text format of Prometheus.
    ///
    /// # Panics
    /// The page has another content type.
    pub fn metrics(&self) -> String {
        let (text, content_type) = client::page(&self.url("/metrics"));
        assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
        text
    }

    /// The URL of a path on the public listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asserts that the toxicity model predicts correctly.
    ///
    /// # Panics
    /// It does not.
    pub fn assert_healthy(&self) {
        let answer = self.post("/models/toxicity/predict", &json!({"text": "You are nice"}));
        assert_eq!((answer.status, &answer.body["label"]), (200, &json!("clean")), "{answer:?}");
    }

    /// Polls until `condition` holds; see [`eventually`].
    ///
    /// # Panics
    /// It does not hold before the [deadline](crate::DEADLINE).
    pub fn eventually(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        eventually(what, || condition(self));
    }

    /// Waits until the metrics page contains this text.
    ///
    /// # Panics
    /// It does not before the [deadline](crate::DEADLINE).
    pub fn wait_for_metric(&self, text: &str) {
        self.eventually(text, |server| server.metrics().contains(text));
    }

    /// Waits until the toxicity model predicts.
    ///
    /// # Panics
    /// It does not before the [deadline](crate::DEADLINE).
    pub fn wait_until_healthy(&self) {
        let body = json!({"text": "You are nice"});
        self.eventually("the toxicity model predicts", |server| {
            server.post("/models/toxicity/predict", &body).status == 200
        });
    }

    /// Waits for the first log line that `wanted` accepts and returns it.
    ///
    /// # Panics
    /// The server exits without it, or it does not come before the [deadline](crate::DEADLINE).
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.log.wait_for(what, 0, wanted)
    }

    /// The same, ignoring the first `skipped` lines.
    ///
    /// # Panics
    /// The server exits without it, or it does not come before the [deadline](crate::DEADLINE).
    pub fn wait_for_after(
        &self,
        skipped: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        self.log.wait_for(what, skipped, wanted)
    }

    /// All log lines so far.
    pub fn lines(&self) -> Vec<Value> {
        self.log.lines.lock().expect("no test panics with the lock").clone()
    }

    /// The peak resident memory of the server in bytes.
    ///
    /// # Panics
    /// `/proc` is not readable.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the server is running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.expect("/proc has the peak memory") << 10
    }

    /// Sets the server's soft limit of open files, or restores the hard limit.
    ///
    /// # Panics
    /// The system refuses.
    pub fn limit_open_files(&self, files: Option<u64>) {
        // The server inherited the hard limit of this process.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: files.or(maximum), maximum };
        prlimit(Some(pid(&self.child)), Resource::Nofile, limit)
            .expect("the server belongs to this user");
    }

    /// Pauses or resumes reading of the server's log. A read that has begun is completed.
    pub fn pause_log_reader(&self, paused: bool) {
        self.log.pause(paused);
    }

    /// Asks the server to stop with SIGINT and waits for the process to exit, without reading its
    /// log.
    ///
    /// # Panics
    /// It does not exit before the [deadline](crate::DEADLINE).
    pub fn stop_unread(mut self) -> ExitStatus {
        self.signal(Signal::INT);
        let child = &mut self.child;
        eventually_some("the server exits", || child.try_wait().expect("the server is our child"))
    }

    /// Asks the server to stop with SIGINT and waits until it has; returns its exit status and its
    /// log.
    ///
    /// # Panics
    /// It does not stop before the [deadline](crate::DEADLINE).
    pub fn stop(self) -> (ExitStatus, Vec<Value>) {
        self.signal(Signal::INT);
        self.wait_for_end()
    }

    /// Sends a signal to the server.
    ///
    /// # Panics
    /// The process has exited and has been waited for.
    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Waits until the server has stopped; returns its exit status and its log.
    ///
    /// # Panics
    /// It does not stop before the [deadline](crate::DEADLINE), or does not log that it stops.
    pub fn wait_for_end(mut self) -> (ExitStatus, Vec<Value>) {
        self.wait_for("the message `stopped`", |line| line["message"] == "stopped");
        let status = self.child.wait().expect("the server is our child");
        (status, self.lines())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if the process has been stopped before, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    fn follow(self: &Arc<Self>, output: PipeReader) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut unread = BufReader::new(output).lines();
            while let Some(Ok(line)) = log.wait_while_paused(|| unread.next()) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                log.lines.lock().expect("no test panics with the lock").push(line);
                log.grown.notify_all();
            }
            // Under the lock: a waiter that has just looked at the lines is already waiting.
            let _lines = log.lines.lock().expect("no test panics with the lock");
            log.ended.store(true, Ordering::Relaxed);
            log.grown.notify_all();
        });
    }

    /// Calls `read` as soon as reading is not paused.
    fn wait_while_paused<T>(&self, read: impl FnOnce() -> T) -> T {
        let paused = self.paused.lock().expect("no test panics with the lock");
        let resumed = self.resumed.wait_while(paused, |paused| *paused);
        drop(resumed.expect("no test panics with the lock"));
        read()
    }

    fn pause(&self, paused: bool) {
        *self.paused.lock().expect("no test panics with the lock") = paused;
        self.resumed.notify_all();
    }

    fn wait_for(&self, what: &str, skipped: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = self.find_after(skipped, what, wanted);
        found.unwrap_or_else(|| {
            panic!("the server exited without {what}:\n{:#?}", self.lines.lock())
        })
    }

    /// The first line that `wanted` accepts; none if the server exits without it.
    fn find(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.find_after(0, what, wanted)
    }

    fn find_after(
        &self,
        skipped: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        let deadline = Instant::now() + DEADLINE;
        let mut lines = self.lines.lock().expect("no test panics with the lock");
        loop {
            if let Some(line) = lines.iter().skip(skipped).find(|line| wanted(line)) {
                return Some(line.clone());
            }
            if self.ended.load(Ordering::Relaxed) {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {DEADLINE:?}: {what}\n{lines:#?}");
            let waited = self.grown.wait_timeout(lines, left);
            (lines, _) = waited.expect("no test panics with the lock");
        }
    }
}

fn spawn(config: &Path, repository: &Path, state: &Path, setup: &Setup) -> (Child, Arc<Log>) {
    // The usual soft limit of services; the server raises it itself.
    let mut command = Command::new("sh");
    let space = setup.address_space_kib.map_or("unlimited".to_owned(), |kib| kib.to_string());
    let script = format!(r#"ulimit -Sn 1024 && ulimit -v {space} && exec "$0" "$@""#);
    command.args(["-c", &script]).arg(environment::host());
    let listen = setup.host.as_deref().unwrap_or("127.0.0.1:0");
    command.args(["serve", "--demo", "--listen", listen, "--admin-listen", listen]);
    command.args(["--grpc-listen", listen, "--log-format", "json"]);
    command.args(["--log", setup.log.as_deref().unwrap_or("info")]);
    command.envs(setup.failpoint.iter().map(|failpoint| ("GUESTHOUSE_FAILPOINT", failpoint)));
    command
        .args(&setup.arguments)
        .envs(setup.environment.iter().map(|(name, value)| (name, value)));
    command.arg("--config").arg(config);
    command.arg("--repository").arg(repository).arg("--state").arg(state);
    // Standard output and standard error go to one reader, as under most service managers.
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    let outputs = (writer.try_clone().expect("a pipe can be shared"), writer);
    let child = command.stdout(outputs.0).stderr(outputs.1).spawn().expect("the host can be run");
    drop(command);
    let log = Arc::new(Log::default());
    log.follow(reader);
    (child, log)
}

fn pid(child: &Child) -> Pid {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid is positive")
}

fn send_signal(child: &Child, signal: Signal) {
    kill_process(pid(child), signal).expect("the server is running");
}

/// Links the compiled code of all packed artifacts into a new state folder. The first call of a
/// test run compiles it.
pub(crate) fn copy_warm_state(to: &Path) {
    static WARM: OnceLock<PathBuf> = OnceLock::new();
    let warm = WARM.get_or_init(|| {
        let state = environment::repository().with_file_name("test-state");
        let config = environment::models().join("demo.toml");
        crate::state::forget_deployed(&state).expect("the deployments can be removed");
        let (mut child, log) =
            spawn(&config, &environment::repository(), &state, &Setup::default());
        log.wait_for("ready", 0, |line| line["message"] == "ready");
        send_signal(&child, Signal::INT);
        child.wait().expect("the server is our child");
        state
    });
    fs::create_dir_all(to.join("compiled")).expect("the scratch folder is writable");
    fs::copy(warm.join("key"), to.join("key")).expect("the key can be copied");
    for entry in fs::read_dir(warm.join("compiled")).expect("the warm state folder is readable") {
        let from = entry.expect("the warm state folder is readable").path();
        let name = from.file_name().expect("an entry has a name");
        fs::hard_link(&from, to.join("compiled").join(name)).expect("files can be linked");
    }
}
