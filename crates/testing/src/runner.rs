//! The runner of integration tests: each test is a process of its own, with captured output and a time limit.
//!
//! The harness of the standard library cannot report at run time that a test was ignored. Here a test that
//! lacks a tool calls [`ignore`], and the result says so. The command line is that of the standard harness.

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, io, panic, process, thread};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

pub use inventory;

/// Names the test that this process runs.
const SELECTED: &str = "LARDER_TEST_CASE";

/// The exit code of a test that calls [`ignore`].
const IGNORED: i32 = 77;

/// Maximum time of one test.
const LIMIT: Duration = Duration::from_secs(600);

/// Number of slow tests that a run lists.
const SLOWEST: usize = 10;

/// Times and names of the tests that ran.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// One integration test; `#[case]` of `larder-test-case` registers it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The path of its module, with the crate.
    pub module: &'static str,
    /// The name of the function.
    pub name: &'static str,
    /// `true` if only another test runs it.
    pub is_hidden: bool,
    /// The test, which panics on failure.
    pub run: fn(),
}

inventory::collect!(Case);

impl Case {
    /// The path of the function without the crate, as the standard harness prints it.
    fn path(&self) -> String {
        match self.module.split_once("::") {
            Some((_, module)) => format!("{module}::{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// Runs the registered tests that the arguments of the process select. This is the `main` of a test program.
pub fn main() -> ExitCode {
    let cases = || inventory::iter::<Case>.into_iter();
    if let Some(selected) = env::var_os(SELECTED) {
        let Some(case) = cases().find(|case| *case.path() == *selected) else {
            return ExitCode::from(64);
        };
        return match panic::catch_unwind(case.run) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(101),
        };
    }
    let mut arguments = Arguments::from_args();
    let is_captured = !arguments.nocapture;
    // Tests wait more than they compute.
    if arguments.test_threads.is_none() && env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads = Some(2 * processors);
    }
    let mut trials: Vec<Trial> = cases()
        .filter(|case| !case.is_hidden)
        .map(|case| {
            let path = case.path();
            Trial::ignorable_test(path.clone(), move || in_process(&path, is_captured))
        })
        .collect();
    trials.sort_by(|a, b| a.name().cmp(b.name()));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let times = std::mem::take(&mut *TIMES.lock().unwrap_or_else(PoisonError::into_inner));
    if times.len() > SLOWEST {
        let _ = write!(io::stdout(), "{}", slowest(times));
    }
    conclusion.exit_code()
}

/// Lists the slowest tests with their times, and the sum over all tests.
fn slowest(mut times: Vec<(Duration, String)>) -> String {
    let sum: Duration = times.iter().map(|(time, _)| *time).sum();
    times.sort_by(|a, b| b.cmp(a));
    let head = format!("slowest of {} tests, which took {:.1} s in sum:\n", times.len(), sum.as_secs_f64());
    let lines =
        times.iter().take(SLOWEST).map(|(time, name)| format!("{:8.1} s  {name}\n", time.as_secs_f64()));
    [head].into_iter().chain(lines).collect()
}

/// Ends the process of a test and reports it as ignored, with the reason.
#[expect(clippy::exit, reason = "ends a test, wherever it is")]
pub fn ignore(reason: &str) -> ! {
    // The last line of the output is the reason.
    let _ = writeln!(io::stdout(), "{reason}");
    process::exit(IGNORED);
}

/// Returns a command that runs the test at `path` in a process of its own.
///
/// # Errors
/// The path of this program is unknown.
pub fn command(path: &str) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.env(SELECTED, path);
    Ok(command)
}

fn in_process(path: &str, is_captured: bool) -> Result<Completion, Failed> {
    let mut command = command(path).map_err(|error| error.to_string())?;
    let (mut output, writer) = io::pipe().map_err(|error| error.to_string())?;
    if is_captured {
        let errors = writer.try_clone().map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    } else {
        drop(writer);
    }
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    // The command has the last writers of this process. Without it, the reader ends with the child.
    drop(command);
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break Ok(status);
        }
        if started.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            break Err(format!("still running after {} s\n", LIMIT.as_secs()));
        }
        thread::sleep(Duration::from_millis(10));
    };
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).push((started.elapsed(), path.to_owned()));
    // A process that the test left behind could hold the pipe open.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !reader.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let text = if reader.is_finished() { reader.join().unwrap_or_default() } else { String::new() };
    match status {
        Ok(status) if status.success() => Ok(Completion::Completed),
        Ok(status) if status.code() == Some(IGNORED) => {
            Ok(Completion::ignored_with(text.lines().last().unwrap_or_default()))
        }
        Ok(status) => Err(format!("{status}\n{text}").into()),
        Err(limit) => Err(format!("{limit}{text}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_tests_come_first() {
        let times = (0..12).map(|n| (Duration::from_secs(n), format!("test{n}"))).collect();
        let text = slowest(times);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + SLOWEST);
        assert_eq!(lines[0], "slowest of 12 tests, which took 66.0 s in sum:");
        assert_eq!(lines[1], "    11.0 s  test11");
        assert_eq!(lines[10], "     2.0 s  test2");
    }
}
