//! Captures a sample of requests and responses in files, if the operator has enabled it.
//!
//! This is the only place that stores what callers send. It does not delay requests: captured
//! requests go through a queue that is bounded in entries and bytes to a thread that writes JSON
//! lines; if the queue is full, they are dropped and counted. The files are readable by their owner
//! only, and bounded in size and number. Which requests are captured is decided by the caller.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use guesthouse_runtime::clock;
use guesthouse_runtime::measure::Counter;

/// The most requests that wait to be written.
const QUEUED: usize = 256;

/// The most bytes that wait to be written: a few of the largest bodies, or thousands of small ones.
const QUEUED_BYTES: usize = 32 << 20;

/// The name of the current file; older files have a number after `capture`.
const FILE: &str = "capture.jsonl";

/// The folder and the size limits of captured requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSettings {
    /// The folder; created when the first request is written.
    pub folder: PathBuf,
    /// The size at which a file is rotated, in bytes.
    pub file_bytes: u64,
    /// The most files.
    pub files: usize,
}

/// A request and its response.
#[derive(Debug)]
pub struct CapturedRequest {
    /// The id of the request.
    pub request_id: String,
    /// The name of the model.
    pub model: String,
    /// The version that answered.
    pub version: String,
    /// The request body as it was sent.
    pub request: Vec<u8>,
    /// The response body.
    pub response: Vec<u8>,
}

impl CapturedRequest {
    fn bytes(&self) -> usize {
        self.request.len() + self.response.len()
    }

    fn line(&self, time: SystemTime) -> String {
        let mut line = json!({
            "time": humantime::format_rfc3339_millis(time).to_string(),
            "request_id": self.request_id,
            "model": self.model,
            "version": self.version,
        });
        for (name, bytes) in [("request", &self.request), ("response", &self.response)] {
            match serde_json::from_slice::<Value>(bytes) {
                Ok(body) => line[name] = body,
                Err(_no_json) => line[format!("{name}_base64")] = json!(BASE64.encode(bytes)),
            }
        }
        format!("{line}\n")
    }
}

/// A handle to the thread that writes captured requests.
#[derive(Debug)]
pub struct CaptureWriter {
    /// `None` after the shutdown.
    queue: Mutex<Option<SyncSender<CapturedRequest>>>,
    shared: Arc<CaptureShared>,
    /// Disconnects when the thread ends; nothing is sent.
    over: Mutex<Receiver<()>>,
}

#[derive(Debug, Default)]
struct CaptureShared {
    waiting_bytes: AtomicUsize,
    written: Counter,
    dropped: Counter,
    failed: Counter,
}

impl CaptureWriter {
    /// Start the thread. No file is created before the first request.
    ///
    /// # Errors
    /// The system cannot create the thread.
    pub fn start(settings: CaptureSettings) -> io::Result<Self> {
        let (queue, entries) = mpsc::sync_channel(QUEUED);
        let (alive, over) = mpsc::channel();
        let shared = Arc::<CaptureShared>::default();
        let thread_shared = Arc::clone(&shared);
        thread::Builder::new().name("capture".to_owned()).spawn(move || {
            write(&entries, &thread_shared, &settings);
            drop::<mpsc::Sender<()>>(alive);
        })?;
        Ok(Self { queue: Mutex::new(Some(queue)), shared, over: Mutex::new(over) })
    }

    /// Enqueue a request; it is dropped and counted if the queue is full.
    pub fn enqueue(&self, entry: CapturedRequest) {
        let (shared, bytes) = (&self.shared, entry.bytes());
        let before = shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = before.saturating_add(bytes) <= QUEUED_BYTES;
        let sent = fits && queue.as_ref().is_some_and(|queue| queue.try_send(entry).is_ok());
        if !sent {
            shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            shared.dropped.count();
        }
    }

    /// The number of requests that were written, that were dropped because the queue was full, and
    /// whose writing failed.
    pub fn counts(&self) -> [(&'static str, u64); 3] {
        let CaptureShared { written, dropped, failed, .. } = &*self.shared;
        [("written", written.total()), ("dropped", dropped.total()), ("failed", failed.total())]
    }

    /// Write the enqueued requests, for at most this time, and stop.
    pub fn shutdown(&self, time: Duration) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        // The error is the awaited disconnection or a timeout.
        let _ = over.recv_timeout(time);
    }
}

fn write(entries: &Receiver<CapturedRequest>, shared: &CaptureShared, settings: &CaptureSettings) {
    let mut file = None;
    let mut was_failing = false;
    for entry in entries {
        let line = entry.line(clock::now());
        shared.waiting_bytes.fetch_sub(entry.bytes(), Ordering::Relaxed);
        let outcome = append(&mut file, line.as_bytes(), settings);
        match &outcome {
            Ok(()) => shared.written.count(),
            Err(error) => {
                shared.failed.count();
                // The file may end with a partial line, which is removed when it is opened again.
                file = None;
                if !was_failing {
                    tracing::error!(%error, "cannot write captured requests");
                }
            }
        }
        was_failing = outcome.is_err();
    }
}

fn append(
    file: &mut Option<(File, u64)>,
    line: &[u8],
    settings: &CaptureSettings,
) -> io::Result<()> {
    let is_full = |length: u64| length > 0 && length + line.len() as u64 > settings.file_bytes;
    if file.is_none() {
        *file = Some(open(settings)?);
    }
    if file.as_ref().is_some_and(|(_, length)| is_full(*length)) {
        *file = None;
        rotate(settings)?;
        *file = Some(open(settings)?);
    }
    let (file, length) = file.as_mut().expect("it has just been opened");
    file.write_all(line)?;
    *length += line.len() as u64;
    Ok(())
}

fn open(settings: &CaptureSettings) -> io::Result<(File, u64)> {
    DirBuilder::new().recursive(true).mode(0o700).create(&settings.folder)?;
    let no_link = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(no_link);
    let file = options.open(settings.folder.join(FILE))?;
    // The file may have existed with other permissions.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let length = whole_lines(&file, file.metadata()?.len())?;
    file.set_len(length)?;
    Ok((file, length))
}

/// The length of the complete lines of a file: a full disk, or the end of the process, may have
/// truncated the last line.
fn whole_lines(file: &File, length: u64) -> io::Result<u64> {
    let mut part = [0; 64 << 10];
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(part.len() as u64);
        let part = &mut part[..usize::try_from(end - start).unwrap_or_default()];
        file.read_exact_at(part, start)?;
        if let Some(place) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + place as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Rename the files to the next numbers, beginning with 1 for the newest, and remove the oldest.
fn rotate(settings: &CaptureSettings) -> io::Result<()> {
    let name = |number: usize| match number {
        0 => settings.folder.join(FILE),
        number => settings.folder.join(format!("capture.{number}.jsonl")),
    };
    for number in (0..settings.files).rev() {
        let next = number + 1;
        let outcome = if next >= settings.files {
            std::fs::remove_file(name(number))
        } else {
            std::fs::rename(name(number), name(next))
        };
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(request: &[u8]) -> CapturedRequest {
        let (request_id, model, version) = ("a".to_owned(), "m".to_owned(), "1.0.0".to_owned());
        CapturedRequest {
            request_id,
            model,
            version,
            request: request.to_vec(),
            response: b"{}".to_vec(),
        }
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            CaptureSettings { folder: folder.path().join("new"), file_bytes: 500, files: 3 };
        let capture = CaptureWriter::start(settings.clone()).unwrap();
        for number in 0..50 {
            capture.enqueue(entry(format!("{{\"number\":{number}}}").as_bytes()));
        }
        capture.shutdown(Duration::from_secs(60));
        assert_eq!(capture.counts(), [("written", 50), ("dropped", 0), ("failed", 0)]);
        let mut names: Vec<_> = std::fs::read_dir(&settings.folder).unwrap().collect();
        assert_eq!(names.len(), 3);
        names.retain(|file| {
            let metadata = file.as_ref().unwrap().metadata().unwrap();
            metadata.len() <= 500 && metadata.permissions().mode() & 0o777 == 0o600
        });
        assert_eq!(names.len(), 3);
        let last = std::fs::read_to_string(settings.folder.join(FILE)).unwrap();
        let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
        assert_eq!(last["request"]["number"], 49);
        capture.enqueue(entry(b"{}"));
        assert_eq!(capture.counts()[1], ("dropped", 1));
    }

    #[test]
    fn a_partial_last_line_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            CaptureSettings { folder: folder.path().to_owned(), file_bytes: 1 << 20, files: 2 };
        let file = folder.path().join(FILE);
        let cut = "x".repeat(100_000);
        for (before, kept) in [(format!("{{}}\n{cut}"), 1), (cut.clone(), 0), (String::new(), 0)] {
            std::fs::write(&file, before).unwrap();
            let capture = CaptureWriter::start(settings.clone()).unwrap();
            capture.enqueue(entry(b"{}"));
            capture.shutdown(Duration::from_secs(60));
            let text = std::fs::read_to_string(&file).unwrap();
            let lines = text.lines().map(serde_json::from_str::<Value>);
            assert_eq!(lines.collect::<Result<Vec<_>, _>>().unwrap().len(), kept + 1);
        }
    }

    #[test]
    fn bodies_other_than_json_are_base64() {
        let line = entry(b"\xff\x00").line(SystemTime::UNIX_EPOCH);
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["request_base64"], &line["response"]), (&json!("/wA="), &json!({})));
        assert_eq!(line["time"], "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_counted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings =
            CaptureSettings { folder: file.path().join("below"), file_bytes: 500, files: 3 };
        let capture = CaptureWriter::start(settings).unwrap();
        capture.enqueue(entry(b"{}"));
        capture.shutdown(Duration::from_secs(60));
        assert_eq!(capture.counts(), [("written", 0), ("dropped", 0), ("failed", 1)]);
    }
}
