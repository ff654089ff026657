//! One server for one test: its own port, repository and state, ended with the test.

mod process;

use std::fs;
use std::io::{BufRead as _, BufReader, PipeReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{self, Answer, DEMO_KEY};
use crate::{artifacts, environment};

/// The longest that anything may take: compiling all guests on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// What a server is to serve, and how.
#[derive(Debug, Default)]
pub struct Setup {
    /// Files that are put into the repository folder.
    pub artifacts: Vec<PathBuf>,
    /// The configuration file.
    pub config: String,
    /// A state folder to use and keep; without one, a copy of the state in which the packed
    /// artifacts are compiled.
    pub state: Option<PathBuf>,
    /// KiB of address space that the server may use; as much as it likes, if none.
    pub address_space_kib: Option<u64>,
    /// What is logged; `info`, if nothing is said.
    pub log: Option<String>,
    /// Where all listeners are; `127.0.0.1:0`, if nothing is said.
    pub host: Option<String>,
    /// The change of a file at which the server ends, or its disk is full: `kill:3`, `full:3`.
    pub failpoint: Option<String>,
    /// Further arguments of `serve`.
    pub arguments: Vec<String>,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl Setup {
    /// Both versions of the toxicity model, with the configuration of the demonstration.
    ///
    /// # Panics
    /// There is no such configuration.
    pub fn toxicity() -> Self {
        let config = fs::read_to_string(environment::models().join("demo.toml"));
        let config = config.expect("the models have a demo.toml");
        let artifacts = vec![artifacts::toxicity("1.0.0"), artifacts::toxicity("2.0.0")];
        Self { artifacts, config, ..Self::default() }
    }

    /// The text direction model beside a healthy one.
    pub fn text_direction() -> Self {
        let config = "default_model = \"toxicity\"\n".to_owned();
        let artifacts = vec![artifacts::toxicity("1.0.0"), artifacts::text_direction()];
        Self { artifacts, config, ..Self::default() }
    }

    /// Models that are there for tests alone, by their names; all of them, if none is named. They are
    /// packed into `folder`.
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

    /// The misbehaving guest beside a healthy model, with that much time for each prediction.
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

/// The lines that the server has logged so far, as far as they have been read.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    grown: Condvar,
    /// The server has ended: there will be no more lines.
    ended: AtomicBool,
    stalled: Mutex<bool>,
    going_on: Condvar,
}

impl Server {
    /// Start a server and wait until it has loaded everything.
    ///
    /// # Panics
    /// It does not get ready.
    pub fn start(setup: &Setup) -> Self {
        Self::start_with(setup, |_repository| {})
    }

    /// Start a server whose repository somebody else has had their hands in, and wait until it has
    /// loaded everything.
    ///
    /// # Panics
    /// It does not get ready.
    pub fn start_with(setup: &Setup, meddle: impl FnOnce(&Path)) -> Self {
        let server = Self::start_loading_with(setup, meddle);
        server.wait_for("ready", |line| line["message"] == "ready");
        server.wait_for("the folder", |line| line["message"] == "repository folder read");
        server
    }

    /// Start a server and wait until it listens.
    ///
    /// # Panics
    /// It does not listen.
    pub fn start_loading(setup: &Setup) -> Self {
        Self::start_loading_with(setup, |_repository| {})
    }

    /// Start a server whose repository somebody else has had their hands in, and wait until it listens.
    ///
    /// # Panics
    /// It does not listen.
    pub fn start_loading_with(setup: &Setup, meddle: impl FnOnce(&Path)) -> Self {
        Self::launch(setup, meddle).unwrap_or_else(|why| panic!("{why}"))
    }

    pub(crate) fn launch(setup: &Setup, meddle: impl FnOnce(&Path)) -> Result<Self, String> {
        let folder = artifacts::temporary_folder();
        let repository = folder.path().join("repository");
        fs::create_dir(&repository).expect("the scratch folder is writable");
        for artifact in &setup.artifacts {
            let name = artifact.file_name().expect("an artifact is a file");
            fs::hard_link(artifact, repository.join(name)).expect("the artifact can be linked");
        }
        meddle(&repository);
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
                Err(format!("the server has ended: {:#?}", log.lines.lock()))
            }
        }
    }

    /// Start a server and wait until it has loaded everything; none, if it ends before that.
    pub fn try_start(setup: &Setup) -> Option<Self> {
        let server = Self::launch(setup, |_repository| {}).ok()?;
        for message in ["ready", "repository folder read"] {
            server.log.find(message, |line| line["message"] == message)?;
        }
        Some(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for gRPC.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where its admin API listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Ask the admin API, with the demo key; `body` is sent if it is not null.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.admin_with(method, path, &[], body)
    }

    /// The same with headers on top.
    pub fn admin_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut all = vec![("X-API-Key", client::DEMO_ADMIN_KEY)];
        all.extend(headers);
        let url = format!("http://{}/admin/v1/{path}", self.admin);
        client::send(method, &url, &all, body.as_bytes())
    }

    /// What operators are shown of a model.
    pub fn model(&self, model: &str) -> Value {
        self.admin("GET", &format!("models/{model}"), &Value::Null).body
    }

    /// Send an artifact to the admin API; what has become of it, as soon as that is known.
    ///
    /// # Panics
    /// The file cannot be read, it is not taken at all, or nothing becomes of it.
    pub fn deploy(&self, artifact: &Path) -> Value {
        let mut progress = self.begin_deploy(artifact);
        let deadline = Instant::now() + PATIENCE;
        while progress["state"] == "running" {
            assert!(Instant::now() < deadline, "the deployment does not end: {progress}");
            let operation = progress["operation"].as_str().expect("an operation has a name");
            let path = format!("operations/{operation}?wait_seconds=30");
            progress = self.admin("GET", &path, &Value::Null).body;
        }
        assert!(progress["state"].is_string(), "{progress}");
        progress
    }

    /// Send an artifact to the admin API, and do not wait for what becomes of it.
    ///
    /// # Panics
    /// The file cannot be read, or it is not taken at all.
    pub fn begin_deploy(&self, artifact: &Path) -> Value {
        let artifact = fs::read(artifact).expect("the artifact is readable");
        let key = [("X-API-Key", client::DEMO_ADMIN_KEY)];
        let url = format!("http://{}/admin/v1/deploy", self.admin);
        let answer = client::send("POST", &url, &key, &artifact);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.body
    }

    /// The folder of what it serves.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("guesthouse.toml")
    }

    /// The folder of its artifacts.
    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// Send JSON with the demo key.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    /// Send a body that need not be JSON, with the demo key; `headers` come on top.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut all = vec![("X-API-Key", DEMO_KEY)];
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !typed {
            all.push(("Content-Type", "application/json"));
        }
        all.extend(headers);
        client::send(method, &self.url(path), &all, body)
    }

    /// Whether a body of that length would be read now; it is announced, and not sent, so that whoever
    /// asks takes no room from others.
    ///
    /// # Panics
    /// The server does neither that nor answer 503.
    pub fn would_read(&self, path: &str, length: usize) -> bool {
        match client::announce(self.address(), path, length) {
            100 => true,
            503 => false,
            status => panic!("{status}"),
        }
    }

    /// Get a page without a key.
    pub fn get(&self, path: &str) -> Answer {
        client::send("GET", &self.url(path), &[], b"")
    }

    /// What Prometheus would read.
    ///
    /// # Panics
    /// It could not.
    pub fn metrics(&self) -> String {
        let (text, content_type) = client::page(&self.url("/metrics"));
        assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
        text
    }

    /// The address of an endpoint.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Assert that the healthy model answers as it should.
    ///
    /// # Panics
    /// It does not.
    pub fn assert_healthy(&self) {
        let answer = self.post("/models/toxicity/predict", &json!({"text": "You are nice"}));
        assert_eq!((answer.status, &answer.body["label"]), (200, &json!("clean")), "{answer:?}");
    }

    /// Ask again and again, until it is so. Leaves the processor to others in between: what is waited
    /// for may be what runs only when nobody else wants it.
    ///
    /// # Panics
    /// It never is.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Wait until that text is in the metrics.
    ///
    /// # Panics
    /// It never is.
    pub fn wait_for_metric(&self, text: &str) {
        self.until(text, |server| server.metrics().contains(text));
    }

    /// Wait until the healthy model answers again.
    ///
    /// # Panics
    /// It does not.
    pub fn wait_until_healthy(&self) {
        let deadline = Instant::now() + PATIENCE;
        let body = json!({"text": "You are nice"});
        while self.post("/models/toxicity/predict", &body).status != 200 {
            assert!(Instant::now() < deadline, "the healthy model does not recover");
        }
    }

    /// The first line of the log that is as wanted, as soon as it is there.
    ///
    /// # Panics
    /// It does not come.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.log.wait_for(what, 0, wanted)
    }

    /// The first such line after so many others.
    ///
    /// # Panics
    /// It does not come.
    pub fn wait_for_after(
        &self,
        skipped: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        self.log.wait_for(what, skipped, wanted)
    }

    /// Every line of the log so far.
    pub fn lines(&self) -> Vec<Value> {
        self.log.lines.lock().expect("no test panics with the lock").clone()
    }

    /// The most memory that it has had in use so far, in bytes.
    ///
    /// # Panics
    /// The system does not say.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the server is running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.expect("the system counts memory") << 10
    }

    /// Let it have that many open files, or as many as it had at first.
    ///
    /// # Panics
    /// The system refuses.
    pub fn limit_open_files(&self, files: Option<u64>) {
        // The server inherited the hard limit.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: files.or(maximum), maximum };
        prlimit(Some(pid(&self.child)), Resource::Nofile, limit).expect("the server is ours");
    }

    /// Read no more of its log but what is being read already, or go on.
    pub fn stall_log(&self, stalled: bool) {
        self.log.stall(stalled);
    }

    /// Ask it to stop, and wait for the end of the process without looking at its log.
    ///
    /// # Panics
    /// It does not stop in time.
    pub fn stop_unread(mut self) -> ExitStatus {
        self.signal(Signal::INT);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the server is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not stop");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Ask it to stop by hand, and wait until it has.
    ///
    /// # Panics
    /// It does not stop.
    pub fn stop(self) -> (ExitStatus, Vec<Value>) {
        self.signal(Signal::INT);
        self.wait_for_end()
    }

    /// Send it a signal.
    ///
    /// # Panics
    /// It has ended, and somebody has noticed.
    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Wait until it has stopped of its own accord, and has said so.
    ///
    /// # Panics
    /// It does not stop, or says nothing.
    pub fn wait_for_end(mut self) -> (ExitStatus, Vec<Value>) {
        self.wait_for("the end", |line| line["message"] == "stopped");
        let status = self.child.wait().expect("the server is our child");
        (status, self.lines())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been stopped before, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    fn follow(self: &Arc<Self>, output: PipeReader) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut unread = BufReader::new(output).lines();
            while let Some(Ok(line)) = log.wait_while_stalled(|| unread.next()) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                log.lines.lock().expect("no test panics with the lock").push(line);
                log.grown.notify_all();
            }
            // Under the lock, so that nobody misses it between a look and a wait.
            let _lines = log.lines.lock().expect("no test panics with the lock");
            log.ended.store(true, Ordering::Relaxed);
            log.grown.notify_all();
        });
    }

    /// What `read` reads, once reading is not stalled.
    fn wait_while_stalled<T>(&self, read: impl FnOnce() -> T) -> T {
        let stalled = self.stalled.lock().expect("no test panics with the lock");
        let going_on = self.going_on.wait_while(stalled, |stalled| *stalled);
        drop(going_on.expect("no test panics with the lock"));
        read()
    }

    fn stall(&self, stalled: bool) {
        *self.stalled.lock().expect("no test panics with the lock") = stalled;
        self.going_on.notify_all();
    }

    fn wait_for(&self, what: &str, skipped: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = self.find_after(skipped, what, wanted);
        found.unwrap_or_else(|| panic!("waited in vain for {what}:\n{:#?}", self.lines.lock()))
    }

    /// The first line that is as wanted; none, if the server has ended without it.
    fn find(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.find_after(0, what, wanted)
    }

    fn find_after(
        &self,
        skipped: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().expect("no test panics with the lock");
        loop {
            if let Some(line) = lines.iter().skip(skipped).find(|line| wanted(line)) {
                return Some(line.clone());
            }
            if self.ended.load(Ordering::Relaxed) {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}:\n{lines:#?}");
            let waited = self.grown.wait_timeout(lines, left);
            (lines, _) = waited.expect("no test panics with the lock");
        }
    }
}

fn spawn(config: &Path, repository: &Path, state: &Path, setup: &Setup) -> (Child, Arc<Log>) {
    // With as few open files as services usually may have until they ask for more.
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
    // Both to the same reader, as under most service managers.
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    let outputs = (writer.try_clone().expect("a pipe can be shared"), writer);
    let child = command.stdout(outputs.0).stderr(outputs.1).spawn();
    let child = child.expect("the host program can be run");
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

/// Link the state in which every packed artifact is compiled; make it first, once a run.
pub(crate) fn copy_warm_state(to: &Path) {
    static WARM: OnceLock<PathBuf> = OnceLock::new();
    let warm = WARM.get_or_init(|| {
        let state = environment::repository().with_file_name("test-state");
        let config = environment::models().join("demo.toml");
        crate::state::forget_deployed(&state).expect("what was deployed can be removed");
        let (mut child, log) =
            spawn(&config, &environment::repository(), &state, &Setup::default());
        log.wait_for("ready", 0, |line| line["message"] == "ready");
        send_signal(&child, Signal::INT);
        child.wait().expect("the server is our child");
        state
    });
    fs::create_dir_all(to.join("compiled")).expect("the scratch folder is writable");
    fs::copy(warm.join("key"), to.join("key")).expect("the key can be copied");
    for entry in fs::read_dir(warm.join("compiled")).expect("the warm state is there") {
        let from = entry.expect("the warm state is there").path();
        let name = from.file_name().expect("an entry has a name");
        fs::hard_link(&from, to.join("compiled").join(name)).expect("files can be linked");
    }
}
