//! A guest that misbehaves on demand; the tests run it beside healthy models.
//!
//! Its input selects what to do. The manifest's parameter `init` selects how `init` behaves.
#![expect(clippy::print_stdout, reason = "printing is one of the things it must not do")]

use std::arch::wasm32::{
    f32x4, f32x4_relaxed_madd, f32x4_relaxed_min, f64x2, f64x2_relaxed_nmadd,
    i8x16_relaxed_laneselect, i8x16_relaxed_swizzle, i16x8_relaxed_dot_i8x16_i7x16,
    i16x8_relaxed_q15mulr, i32x4_relaxed_trunc_f32x4, i32x4_relaxed_trunc_f64x2_zero, u8x16,
    u32x4_relaxed_trunc_f32x4, u64x2_extract_lane, v128,
};
use std::hint::black_box;
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use guesthouse_guest::{
    Assets, Batch, Error, Field, Guest, PredictError, Rejections, Signature, Tensor, export, log,
};

/// State that is kept between calls of an instance.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// A text that would start a new line, or make a terminal show something else.
const FORGERY: &str = "told\r\nforged\nforged\0\x1b[2Jcleared\u{9b}2J\u{85}next\u{202e}turned\u{2066}\
                       \u{200f}\u{2028}forged\u{2029}forged\x7f";

/// The results of relaxed SIMD in `init`.
static RELAXED_IN_INIT: OnceLock<String> = OnceLock::new();

struct Misbehave;

impl Guest for Misbehave {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let behaviour = assets.parameter::<String>("init")?;
        match behaviour.as_str() {
            // All values have the length of "well", so that a test can replace them in a packed
            // artifact.
            "well" => {}
            "fail" => return Err(Error::new("init was told to fail")),
            "miss" => drop(assets.read("absent.bin")?),
            "spin" => spin(),
            "hogs" => allocate(),
            "trap" => panic!("init was told to panic"),
            "echo" => println!("init was told to print"),
            "time" => drop(black_box(SystemTime::now())),
            "slow" => drop(black_box(count_to(300_000_000))),
            // Slow in each instance, because the clock makes a snapshot impossible.
            "late" => drop(black_box((count_to(300_000_000), SystemTime::now()))),
            other => return Err(Error::new(format!("unknown behaviour {other:?}"))),
        }
        RELAXED_IN_INIT.get_or_init(|| relaxed_simd());
        let action = Field::text("action", "what to do").length(1, 100);
        let done = Field::text("done", "what was done");
        let score = Field::fp32("score", "nothing");
        Ok((Self, Signature::new([action], [done, score]).max_batch_size(8)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let actions = batch.texts("action")?;
        let (rows, mut rejections) = (actions.len(), Rejections::default());
        for (row, action) in actions.iter().enumerate() {
            // The text after the first word makes requests distinct.
            match action.split(' ').next().unwrap_or_default() {
                "echo" => {}
                "reject" => rejections.reject(row, "action", "is not wanted here"),
                "reject-row-99" => rejections.reject(99, "action", "is not in the batch"),
                "fail" => return Err(PredictError::failed("told to fail")),
                "forge" => {
                    log::info(FORGERY);
                    return Err(PredictError::failed(FORGERY));
                }
                "panic" => panic!("told to panic"),
                "work" => drop(black_box(count_to(30_000_000))),
                "spin" => spin(),
                "spin-memory" => spin_in_memory(),
                "spin-host-call" => spin_in_host_calls(),
                "grow" => drop(black_box(Box::leak(vec![1_u8; 1 << 20].into_boxed_slice()))),
                "count" => {
                    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
                    return Ok(beside_score(
                        Tensor::texts("done", [calls.to_string().as_str()]),
                        rows,
                    ));
                }
                "relaxed-simd" => {
                    let before = RELAXED_IN_INIT.get().map(String::as_str).unwrap_or_default();
                    let both = format!("{before} {}", relaxed_simd());
                    return Ok(beside_score(Tensor::texts("done", [both.as_str()]), rows));
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
                "wrong-name" => return Ok(beside_score(Tensor::texts("other", actions), rows)),
                "wrong-type" => return Ok(beside_score(Tensor::int64("done", [1]), rows)),
                "wrong-rows" => {
                    return Ok(beside_score(Tensor::texts("done", ["one", "two", "three"]), rows));
                }
                "wrong-length" => {
                    let bytes = guesthouse_guest::Datatype::Bytes;
                    return Ok(beside_score(
                        Tensor::raw("done", bytes, vec![1], vec![9, 0, 0, 0]),
                        rows,
                    ));
                }
                "not-a-number" => {
                    let score = Tensor::fp32("score", actions.iter().map(|_| f32::NAN));
                    return Ok(vec![Tensor::texts("done", actions), score]);
                }
                "no-output" => return Ok(Vec::new()),
                "huge-output" => {
                    let huge = "x".repeat(100 << 20);
                    return Ok(beside_score(Tensor::texts("done", [huge.as_str()]), rows));
                }
                _ => return Err(PredictError::failed("the action is not known")),
            }
        }
        rejections.check()?;
        Ok(beside_score(Tensor::texts("done", actions), rows))
    }
}

/// The results of the instructions that WebAssembly leaves implementation-defined, on operands for
/// which machines differ.
#[target_feature(enable = "simd128,relaxed-simd")]
fn relaxed_simd_of(bytes: v128, others: v128, floats: v128, doubles: v128) -> [v128; 10] {
    [
        i8x16_relaxed_swizzle(bytes, others),
        i32x4_relaxed_trunc_f32x4(floats),
        u32x4_relaxed_trunc_f32x4(floats),
        i32x4_relaxed_trunc_f64x2_zero(doubles),
        f32x4_relaxed_madd(floats, floats, floats),
        f32x4_relaxed_min(floats, bytes),
        i8x16_relaxed_laneselect(bytes, floats, others),
        i16x8_relaxed_q15mulr(others, others),
        i16x8_relaxed_dot_i8x16_i7x16(bytes, others),
        f64x2_relaxed_nmadd(doubles, doubles, doubles),
    ]
}

#[target_feature(enable = "simd128,relaxed-simd")]
fn relaxed_simd() -> String {
    // Indices out of range, numbers that are too large, and subnormal numbers, for which
    // implementations differ.
    let bytes = black_box(u8x16(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 200));
    let others =
        black_box(u8x16(16, 33, 64, 127, 0, 128, 0, 128, 200, 255, 16, 17, 18, 19, 0x55, 0x3c));
    let floats = black_box(f32x4(3e9, -1.5, 1.1, 1e10));
    let doubles = black_box(f64x2(1e300, 1.1));
    let results = relaxed_simd_of(bytes, others, floats, doubles);
    let lanes =
        results.map(|result| [u64x2_extract_lane::<0>(result), u64x2_extract_lane::<1>(result)]);
    lanes.iter().flatten().map(|lane| format!("{lane:016x}")).collect()
}

/// The outputs; one of them is always correct.
fn beside_score(done: Tensor, rows: usize) -> Vec<Tensor> {
    vec![done, Tensor::fp32("score", std::iter::repeat_n(0.0, rows))]
}

/// Fail with a text that a test can read in the log: what the sandbox lets the guest see.
fn told<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> PredictError {
    PredictError::failed(format!("{outcome:?}"))
}

/// Compute for tenths of a second.
fn count_to(end: u64) -> u64 {
    (0..end).fold(0, |sum, number| black_box(sum + number))
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

/// Spend nearly all of the time in the host, which copies the message and drops it.
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
