//! The result of a build, from the end of its process and its output.

use std::os::unix::process::ExitStatusExt as _;

use super::process::End;
use crate::caches::runner::Ended;
use larder_model::event::Outcome;

/// Exit codes of a builder that was interrupted or terminated and left a volume that can be resumed
/// (cli::exit).
const STOPPED: [i32; 2] = [130, 143];
/// The number of SIGTERM (signal(7)). It kills a builder that has not yet installed its handler.
const SIGTERM: i32 = 15;

/// Combines the end of the process with its output. A result counts only if the process ends with the exit
/// code of the result. `output` is `None` if the output was never closed.
pub(super) fn of(
    end: &End,
    output: Option<Result<Option<Outcome>, String>>,
    memory: u64,
    last_output: &str,
) -> Ended {
    let how = end.describe(memory, last_output);
    let outcome = match output {
        Some(Err(fault)) => return Ended::Died(format!("{how}: {fault}")),
        Some(Ok(outcome)) => outcome,
        None => None,
    };
    if end.killed.is_some() {
        // Volumes are crash-safe, so the volume of a killed builder can be resumed too.
        return if end.stop_requested { Ended::Stopped } else { Ended::Died(how) };
    }
    let code = end.status.code();
    let stopped = code.is_some_and(|code| STOPPED.contains(&code)) || end.status.signal() == Some(SIGTERM);
    match outcome {
        _ if stopped && end.stop_requested => Ended::Stopped,
        _ if stopped => Ended::Died(format!("{how}; it was stopped by another process")),
        Some(outcome) if code == Some(i32::from(outcome.exit_code)) => Ended::Result(outcome),
        Some(outcome) => Ended::Died(format!("{how}; its result was for exit code {}", outcome.exit_code)),
        None => Ended::Died(format!("{how}; it returned no result")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::super::process::Kill;
    use super::*;
    use larder_model::event::Status;

    fn outcome(exit_code: u8) -> Outcome {
        Outcome {
            status: if exit_code == 0 { Status::Ok } else { Status::Failed },
            exit_code,
            ..Outcome::succeeded("")
        }
    }

    /// Wait statuses as in wait(2): an exit code is in the second byte, a signal in the first.
    fn ended(wait: i32, stop_requested: bool, killed: Option<Kill>, reported: Option<u8>) -> String {
        let end = End { status: ExitStatus::from_raw(wait), stop_requested, killed, out_of_memory: false };
        match of(&end, Some(Ok(reported.map(outcome))), 0, "w") {
            Ended::Result(outcome) => format!("result {}", outcome.exit_code),
            Ended::Stopped => "stopped".into(),
            Ended::Died(how) => format!("died: {how}"),
            other @ (Ended::NotStarted(_) | Ended::Exhausted(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_ways_to_end() {
        let exit = |code: i32| code << 8;
        let late = "died: the builder did not end in time and was killed; its last output: w";
        for (wait, stop_requested, killed, reported, want) in [
            (exit(0), false, None, Some(0), "result 0"),
            (exit(77), false, None, Some(77), "result 77"),
            (exit(0), true, None, Some(0), "result 0"),
            (exit(143), true, None, Some(143), "stopped"),
            (exit(130), true, None, None, "stopped"),
            (SIGTERM, true, None, None, "stopped"),
            (9, true, Some(Kill::Disobedient), None, "stopped"),
            (9, true, Some(Kill::Overdue), None, "stopped"),
            (9, false, Some(Kill::Overdue), None, late),
        ] {
            assert_eq!(
                ended(wait, stop_requested, killed, reported),
                want,
                "{wait} {stop_requested} {killed:?} {reported:?}"
            );
        }
        for (wait, reported, want) in [
            (
                exit(143),
                Some(143),
                "ended with exit code 143; its last output: w; it was stopped by another process",
            ),
            (9, None, "was killed by signal 9; its last output: w; it returned no result"),
            (9, Some(0), "was killed by signal 9; its last output: w; its result was for exit code 0"),
            (exit(1), Some(0), "ended with exit code 1; its last output: w; its result was for exit code 0"),
            (exit(0), None, "ended with exit code 0; its last output: w; it returned no result"),
        ] {
            let how = ended(wait, false, None, reported);
            assert!(how.starts_with(&format!("died: the builder {want}")), "{wait} {reported:?}: {how}");
        }
        let how = ended(9, false, Some(Kill::Lingering), Some(0));
        assert!(how.contains("did not end after its result"), "{how}");
    }

    #[test]
    fn out_of_memory_is_reported() {
        let end =
            End { status: ExitStatus::from_raw(9), stop_requested: false, killed: None, out_of_memory: true };
        let Ended::Died(how) = of(&end, None, 64 << 20, "") else { panic!("not dead") };
        assert!(how.contains("was killed by signal 9; out of memory: its limit is 64 MiB"), "{how}");
    }
}
