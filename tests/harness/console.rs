//! Runs the commands of a page, and compares what they print with what the page shows.
//!
//! A block marked `console,run` holds commands, which begin with `$ `, each followed by its output, in
//! which `…` stands for any text. A line that ends with a backslash continues in the next one. All
//! blocks of a page share one shell. A block marked `console,run,background` holds one command that
//! runs until the page ends; what it prints has to show the lines below it before the page goes on.
//!
//! A block marked `file=NAME` becomes a file of that name in the shell's folder.
//!
//! The shell's folder looks like the repository after it was built: what `cargo xtask` would build is
//! there, and `cargo` only starts it. Ports of the page are replaced by free ones.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::book::{self, Block, Page};
use crate::{artifacts, environment, server};

/// The longest that a command may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long a process may take to end after SIGTERM, before it is killed.
const STOP_TIME: Duration = Duration::from_secs(30);

/// Stands for any text in an expected output.
const ANY: char = '…';

/// Ends the output of a command in the shell, before its exit status.
const END: &str = "@@end-of-command";

/// The ports that pages name.
const PORTS: [u16; 3] = [8000, 8001, 8002];

/// What `cargo` does in the shell: everything is built, so it has to start it only.
const CARGO: &str = r#"#!/bin/sh
case "$*" in
"xtask pack") ;;
"xtask demo")
    exec "$GUESTHOUSE_BIN" serve --demo --config models/demo.toml \
        --repository target/guesthouse/repository --state target/guesthouse/state
    ;;
*)
    echo "the runner of commands does not know: cargo $*" >&2
    exit 1
    ;;
esac
"#;

/// The programs that a page may not need if it says that it needs no compiler.
const COMPILERS: [&str; 8] = ["cargo", "rustc", "rustup", "cc", "gcc", "clang", "c++", "ld"];

/// What they do in the shell.
const NO_COMPILER: &str = "#!/bin/sh\necho \"$0 is needed\" >&2\nexit 1\n";

/// A command and what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    line: usize,
    command: String,
    expected: String,
}

/// A shell in a folder of its own.
pub struct Session {
    folder: TempDir,
    ports: [u16; 3],
    /// The folders of programs besides those of the machine.
    programs: Vec<PathBuf>,
    shell: Process,
    input: ChildStdin,
    background: Vec<Process>,
}

/// Run every block of the page that is marked with `run`, as in a clone of the repository; how many
/// commands there were.
///
/// # Panics
/// A command fails, prints something else than the page shows, or does not end.
pub fn run(page: &Page) -> usize {
    run_in(&mut Session::open(&[]), page)
}

/// The same on a machine on which `guesthouse` is installed.
///
/// # Panics
/// The same.
pub fn run_installed(page: &Page) -> usize {
    run_in(&mut Session::open(&["target/release"]), page)
}

/// The same on a machine with `guesthouse` and Python, and without compilers.
///
/// # Panics
/// The same.
pub fn run_without_compilers(page: &Page) -> usize {
    // Not by a link: Python finds its packages by the path of its program.
    let python = environment::python();
    let mut session = Session::open(&["target/release", &python.to_string_lossy()]);
    let programs = session.folder.path().join("programs");
    for name in COMPILERS {
        write_program(&programs.join(name), NO_COMPILER).expect("the scratch folder is writable");
    }
    run_in(&mut session, page)
}

fn run_in(session: &mut Session, page: &Page) -> usize {
    let blocks = page.blocks();
    let marked = |word: &str, block: &Block| block.attributes.iter().any(|one| one == word);
    let mut count = 0;
    for block in &blocks {
        if let Some(name) = block.attributes.iter().find_map(|one| one.strip_prefix("file=")) {
            let text = block.lines.join("\n") + "\n";
            fs::write(session.folder.path().join(name), text).expect("the folder is writable");
        }
        if !marked("run", block) {
            continue;
        }
        for step in steps(block) {
            let place = format!("{}:{}", page.path.display(), step.line);
            if marked("background", block) {
                session.start(&place, &step);
            } else {
                session.perform(&place, &step);
            }
            count += 1;
        }
    }
    count
}

/// The commands of a block.
fn steps(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut continues = false;
    for (line, text) in (block.line + 1..).zip(&block.lines) {
        if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step { line, command: command.to_owned(), expected: String::new() });
        } else if let Some(step) = steps.last_mut() {
            let part = if continues { &mut step.command } else { &mut step.expected };
            if !part.is_empty() {
                part.push('\n');
            }
            part.push_str(text);
        }
        continues = text.ends_with('\\');
    }
    steps
}

impl Session {
    /// A shell that finds programs in these folders, too.
    fn open(programs: &[&str]) -> Self {
        let folder = artifacts::temporary_folder();
        furnish(folder.path()).expect("the scratch folder is writable");
        let ports = PORTS.map(|_port| free_port());
        let programs: Vec<_> = programs.iter().map(|one| folder.path().join(one)).collect();
        let mut command = command(folder.path(), programs.clone(), ports);
        command.args(["--noprofile", "--norc"]).stdin(Stdio::piped());
        let mut shell = Process::spawn(command);
        let input = shell.child.stdin.take().expect("the shell has an input");
        Self { folder, ports, programs, shell, input, background: Vec::new() }
    }

    /// Start a command that goes on, and wait until it has printed what is expected.
    fn start(&mut self, place: &str, step: &Step) {
        let mut command = command(self.folder.path(), self.programs.clone(), self.ports);
        command.arg("-c").arg(replace_ports(&step.command, self.ports)).stdin(Stdio::null());
        let mut process = Process::spawn(command);
        let expected = format!("{ANY}{}{ANY}", replace_ports(&step.expected, self.ports));
        let printed = process.read_until(|text| matches(&expected, text));
        assert!(matches(&expected, &printed), "{place}: `{}` printed:\n{printed}", step.command);
        self.background.push(process);
    }

    /// Run a command to its end.
    fn perform(&mut self, place: &str, step: &Step) {
        let command = replace_ports(&step.command, self.ports);
        let script = format!("{{ {command}\n}} < /dev/null\nprintf '\\n{END} %s\\n' $?\n");
        self.input.write_all(script.as_bytes()).expect("the shell is running");
        let printed = self.shell.read_until(|text| {
            text.rsplit_once(END).is_some_and(|(_, status)| status.ends_with('\n'))
        });
        let end = printed.rsplit_once(END);
        let (output, status) = end.unwrap_or_else(|| panic!("{place} does not end:\n{printed}"));
        self.shell.printed.clear();
        assert_eq!(status.trim(), "0", "{place}: `{command}` failed:\n{output}");
        let expected = replace_ports(&step.expected, self.ports);
        assert!(
            matches(expected.trim(), output.trim()),
            "{place}: `{command}` printed:\n{output}\nand not:\n{expected}"
        );
    }
}

/// Make the folder look like the repository after everything was built.
fn furnish(folder: &Path) -> std::io::Result<()> {
    for name in ["target/release", "target/guesthouse", "target/wasm32-wasip2", "programs"] {
        fs::create_dir_all(folder.join(name))?;
    }
    symlink(environment::models(), folder.join("models"))?;
    symlink(environment::repository(), folder.join("target/guesthouse/repository"))?;
    symlink(environment::guests(), folder.join("target/wasm32-wasip2/guest"))?;
    symlink(environment::host(), folder.join("target/release/guesthouse"))?;
    server::copy_warm_state(&folder.join("target/guesthouse/state"));
    write_program(&folder.join("programs/cargo"), CARGO)
}

fn write_program(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// A shell in that folder, which finds programs in these folders and servers at those ports.
fn command(folder: &Path, mut programs: Vec<PathBuf>, [http, grpc, admin]: [u16; 3]) -> Command {
    programs.push(folder.join("programs"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    programs.extend(std::env::split_paths(&path));
    let path = std::env::join_paths(programs).expect("no folder has a colon in its name");
    let mut command = Command::new("bash");
    command
        .current_dir(folder)
        .env("PATH", path)
        .env("PYTHONPATH", book::root().join("host/python/src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("GUESTHOUSE_BIN", environment::host())
        .env("GUESTHOUSE_LISTEN", format!("127.0.0.1:{http}"))
        .env("GUESTHOUSE_GRPC_LISTEN", format!("127.0.0.1:{grpc}"))
        .env("GUESTHOUSE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .env("GUESTHOUSE_ADMIN_SERVER", format!("http://127.0.0.1:{admin}"))
        .env("GUESTHOUSE_LOG_FORMAT", "text");
    command
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn replace_ports(text: &str, ports: [u16; 3]) -> String {
    let mut text = text.to_owned();
    for (named, free) in PORTS.iter().zip(ports) {
        for host in ["localhost", "127.0.0.1"] {
            text = text.replace(&format!("{host}:{named}"), &format!("127.0.0.1:{free}"));
        }
    }
    text
}

/// Whether the pattern, in which [`ANY`] stands for any text, is the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split(ANY);
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

/// A running program, ended when this is dropped, and what it has printed so far.
struct Process {
    child: Child,
    lines: Receiver<String>,
    printed: String,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        let (reader, writer) = std::io::pipe().expect("the system has pipes");
        command.stdout(writer.try_clone().expect("the system has pipes")).stderr(writer);
        let child = command.spawn().expect("bash can be started");
        // The command holds ends of the pipe as well, which would keep the reader waiting.
        drop(command);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || send_lines(reader, &sender));
        Self { child, lines, printed: String::new() }
    }

    /// What was printed when that holds of it, or at the end, or when patience is at its end.
    fn read_until(&mut self, holds: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.printed) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.printed.push_str(&line),
                Err(RecvTimeoutError::Timeout) => {
                    let _ = write!(self.printed, "\n(no more for {} s)", PATIENCE.as_secs());
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.printed.clone()
    }
}

fn send_lines(reader: PipeReader, sender: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() => return,
            Ok(_) => {}
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let send = |signal| id.map(|id| kill_process(id, signal));
        let _ = send(Signal::TERM);
        let (ended, end) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = self.child.wait();
                let _ = ended.send(());
            });
            // Not reaped yet, so the id is still this process's.
            if end.recv_timeout(STOP_TIME).is_err() {
                let _ = send(Signal::KILL);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ellipsis_stands_for_any_text() {
        assert!(matches("a…c", "abc") && matches("a…c", "ac") && matches("…", ""));
        assert!(matches("…b…d", "abcd") && matches("a", "a") && matches("", ""));
        assert!(!matches("a…c", "abcd") && !matches("a", "ab") && !matches("b…", "abc"));
    }

    #[test]
    fn commands_are_followed_by_their_output() {
        let lines = ["$ a \\", "  b", "out", "more", "$ c"].map(str::to_owned).to_vec();
        let block = Block { line: 3, attributes: Vec::new(), lines };
        let step = |line, command: &str, expected: &str| Step {
            line,
            command: command.to_owned(),
            expected: expected.to_owned(),
        };
        assert_eq!(steps(&block), [step(4, "a \\\n  b", "out\nmore"), step(8, "c", "")]);
    }
}
