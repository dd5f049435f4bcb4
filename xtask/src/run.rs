//! Running programs in sight.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Prints what is about to be run, on stderr, where the programs' own progress goes.
pub fn announce(command: &Command) {
    eprintln!("$ {}", shown(command));
}

/// Prints the command and runs it to its end.
pub fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| format!("can't start {}", command.get_program().display()))?;
    if !status.success() {
        // The whole of it stands above what it printed.
        let start: Vec<String> = shown(command).split(' ').take(2).map(str::to_owned).collect();
        bail!("{} failed: {status}", start.join(" "));
    }
    Ok(())
}

/// The command as a person would type it: the program without its directory, arguments quoted where needed.
fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for argument in command.get_args().map(|argument| argument.to_string_lossy()) {
        line.push(' ');
        match argument.chars().any(|c| c.is_whitespace() || "\"'$;&|<>*?()".contains(c)) || argument.is_empty() {
            true => line.push_str(&format!("'{}'", argument.replace('\'', r"'\''"))),
            false => line.push_str(&argument),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["build", "a b", ""]);
        assert_eq!(shown(&command), "cargo build 'a b' ''");
    }

    #[test]
    fn failure_names_the_command() {
        let error = run(&mut Command::new("false")).map_err(|error| error.to_string());
        assert!(matches!(error, Err(message) if message.starts_with("false failed: ")));
    }
}
