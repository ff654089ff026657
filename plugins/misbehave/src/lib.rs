//! The guest that does on demand what a guest must not do; the tests run it beside healthy models.
//!
//! Its one input says what to do. The parameter `init` of the manifest says how `init` behaves.
#![expect(clippy::print_stdout, reason = "printing is one of the things it must not do")]

use std::hint::black_box;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use guesthouse_guest::{
    Assets, Batch, Error, Field, Guest, PredictError, Rejections, Signature, Tensor, export, log,
};

/// State that a guest keeps between calls, as long as its instance lives.
static CALLS: AtomicU32 = AtomicU32::new(0);

struct Misbehave;

impl Guest for Misbehave {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let behaviour = assets.parameter::<String>("init")?;
        match behaviour.as_str() {
            // All words are as long as "well", so that a test can change a packed artifact's mind.
            "well" => {}
            "fail" => return Err(Error::new("init was told to fail")),
            "miss" => drop(assets.read("absent.bin")?),
            "spin" => spin(),
            "hogs" => allocate(),
            "trap" => panic!("init was told to panic"),
            "echo" => println!("init was told to print"),
            "time" => drop(black_box(SystemTime::now())),
            other => return Err(Error::new(format!("unknown behaviour {other:?}"))),
        }
        let action = Field::text("action", "what to do").length(1, 100);
        let done = Field::text("done", "what was done");
        Ok((Self, Signature::new([action], [done]).max_batch_size(8)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let actions = batch.texts("action")?;
        let mut rejections = Rejections::default();
        for (row, action) in actions.iter().enumerate() {
            match *action {
                "echo" => {}
                "reject" => rejections.reject(row, "action", "is not wanted here"),
                "reject-row-99" => rejections.reject(99, "action", "is not in the batch"),
                "fail" => return Err(PredictError::failed("told to fail")),
                "panic" => panic!("told to panic"),
                "spin" => spin(),
                "spin-memory" => spin_in_memory(),
                "spin-host-call" => spin_in_host_calls(),
                "grow" => drop(black_box(Box::leak(vec![1_u8; 1 << 20].into_boxed_slice()))),
                "count" => {
                    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
                    return Ok(vec![Tensor::texts("done", [calls.to_string().as_str()])]);
                }
                "allocate" => allocate(),
                "recurse" => drop(black_box(recurse(1))),
                "flood-log" => (0..100_000).for_each(|_| log::info(&"flood ".repeat(1000))),
                "sleep" => std::thread::sleep(Duration::from_secs(3600)),
                "print" => println!("told to print"),
                "exit" => std::process::exit(0),
                "read-file" => return Err(told(std::fs::read("/etc/passwd"))),
                "list-folder" => return Err(told(std::fs::read_dir("/"))),
                "connect" => return Err(told(TcpStream::connect(("127.0.0.1", 8000)))),
                "environment" => return Err(told(Ok(std::env::vars().collect::<Vec<_>>()))),
                "clock" => return Err(told(Ok(SystemTime::now()))),
                "wrong-name" => return Ok(vec![Tensor::texts("other", actions)]),
                "wrong-type" => return Ok(vec![Tensor::int64("done", [1])]),
                "wrong-rows" => return Ok(vec![Tensor::texts("done", ["one", "two", "three"])]),
                "wrong-length" => {
                    let bytes = guesthouse_guest::Datatype::Bytes;
                    return Ok(vec![Tensor::raw("done", bytes, vec![1], vec![9, 0, 0, 0])]);
                }
                "no-output" => return Ok(Vec::new()),
                "huge-output" => {
                    let huge = "x".repeat(100 << 20);
                    return Ok(vec![Tensor::texts("done", [huge.as_str()])]);
                }
                _ => return Err(PredictError::failed("the action is not known")),
            }
        }
        rejections.check()?;
        Ok(vec![Tensor::texts("done", actions)])
    }
}

/// The guest's failure goes to the log, where a test can read what the sandbox let it see.
fn told<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> PredictError {
    PredictError::failed(format!("{outcome:?}"))
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn spin_in_memory() -> ! {
    let mut memory = vec![0_u8; 1 << 20];
    loop {
        black_box(&mut memory).iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    }
}

/// Spends nearly all of its time in the host: the message is copied there and then not logged.
fn spin_in_host_calls() -> ! {
    let message = "x".repeat(4096);
    loop {
        log::debug(black_box(&message));
    }
}

fn allocate() {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[expect(unconditional_recursion, reason = "this is the misbehaviour")]
fn recurse(depth: u64) -> u64 {
    black_box(depth) + recurse(black_box(depth + 1))
}

export!(Misbehave);
