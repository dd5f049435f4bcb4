//! mhctl: its arguments ([`arguments`]), its tables ([`table`]) and what each command does ([`run`]).
//!
//! Failure behaviour: a command that is refused or fails prints one line on stderr, what is wrong and the mend, and exits with 1; wrong
//! usage exits with 2 (clap). A reader that goes away (`mhctl flows | head`) is no failure.

pub mod arguments;
mod import;
mod render;
pub mod table;

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::Serialize;

use self::arguments::{Arguments, Command, ExplainArguments, FlowsAction, FlowsArguments, ImportFrom};
use crate::{
    config,
    control::{
        api::{DrainRequest, ExplainRequest, FlowFilter, HealthRequest, SetsRequest, WeightsRequest},
        client::{Client, ClientError},
    },
};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// mhd refused, or is not there.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// An argument is wrong.
    #[error("{0}")]
    Argument(String),
    /// The output can't be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The document can't be printed.
    #[error("cannot print the answer as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The configuration has faults; they are printed as they are.
    #[error("{0}")]
    Config(#[from] config::LoadError),
    /// A file that was to be brought over has a fault; it is printed as it is.
    #[error("{0}")]
    Import(String),
}

impl CliError {
    /// Whether the reader of the output went away, which is no failure.
    pub fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Self::Json(error) => error.io_error_kind() == Some(io::ErrorKind::BrokenPipe),
            _ => false,
        }
    }
}

/// Runs a command.
pub async fn run(arguments: Arguments) -> Result<(), CliError> {
    let client = Client::new(&arguments.socket);
    let output = Output { json: arguments.json, colour: table::colour() };
    match arguments.command {
        Command::Status => output.show(&client.status().await?, render::status),
        Command::Weights { weights, save } => {
            let request = WeightsRequest { weights: parse_weights(&weights)?, save };
            let unchanged = request.weights.is_empty() && !save;
            let list = if unchanged { client.weights().await? } else { client.set_weights(&request).await? };
            output.show(&list, |list, colour| render::weights(list, colour))
        }
        Command::Drain { name, save } => {
            client.set_drain(&name, true, &DrainRequest { save }).await?;
            output.done(&format!("{name} takes no new flows"))
        }
        Command::Undrain { name, save } => {
            client.set_drain(&name, false, &DrainRequest { save }).await?;
            output.done(&format!("{name} takes new flows again"))
        }
        Command::Health { name, health, save } => {
            client.set_health(&name, &HealthRequest { health: health.into(), save }).await?;
            output.done(&format!("health of {name}: {health}"))
        }
        Command::Flows(flows) => {
            let filter = filter(&flows)?;
            match flows.action.unwrap_or(FlowsAction::List) {
                FlowsAction::List => {
                    output.show(&client.flows(&filter).await?, |list, colour| render::flows(list, colour))
                }
                FlowsAction::Count => {
                    output.show(&client.count_flows(&filter).await?, |count, _| format!("{}\n", count.count))
                }
                FlowsAction::Flush => output
                    .show(&client.flush_flows(&filter).await?, |count, _| format!("{} flows removed\n", count.count)),
            }
        }
        Command::Bindings => output.show(&client.bindings().await?, |list, colour| render::bindings(list, colour)),
        Command::Stats => output.show(&client.stats().await?, render::stats),
        Command::Rules => output.show(&client.rules().await?, |list, colour| render::rules(list, colour)),
        Command::Policies => output.show(&client.policies().await?, |list, colour| render::policies(list, colour)),
        Command::Sets { contains } => {
            let contains = contains.map(|text| parse_address(&text)).transpose()?;
            let list = client.sets(&SetsRequest { contains }).await?;
            output.show(&list, |list, colour| render::sets(list, colour))
        }
        Command::Explain(packet) => output.show(&client.explain(&explain_request(packet)?).await?, render::explanation),
        Command::Events { follow: false, since } => {
            output.show(&client.events(since).await?, |list, colour| render::events(list, colour))
        }
        Command::Events { follow: true, since } => {
            if !output.json {
                output.line(&render::event_head())?;
            }
            client
                .follow_events(since, |event| match output.json {
                    true => output.line(&serde_json::to_string(&event)?),
                    false => output.line(&render::event(&event, output.colour)),
                })
                .await
        }
        Command::Reload => output.show(&client.reload().await?, render::reloaded),
        Command::Check { file } => {
            let warnings = config::check(&file)?;
            eprint!("{}", config::warning_lines(&file, &warnings));
            output.done(&format!("{}: ok", file.display()))
        }
        Command::Import { from: ImportFrom::Mwan3 { file, network } } => {
            import::mwan3(&file, network.as_deref(), &output)
        }
        Command::Detach => {
            client.detach().await?;
            output.done("programs and maps are removed; mhd has ended")
        }
        Command::Version => {
            let mhctl = env!("CARGO_PKG_VERSION");
            output.show(&client.version().await?, |version, _| {
                format!(
                    "mhctl {mhctl}, mhd {}, map layout {}, Linux {}\n",
                    version.version, version.abi, version.kernel
                )
            })
        }
        Command::Completions { shell } => {
            let mut command = <Arguments as clap::CommandFactory>::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "mhctl", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
        Command::Man => Ok(io::stdout().write_all(&man_pages()?)?),
    }
}

/// mhctl's man page, and behind it those of its commands.
fn man_pages() -> io::Result<Vec<u8>> {
    // `help` is left out: it says what stands here.
    let mut command = <Arguments as clap::CommandFactory>::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().cloned().collect::<Vec<_>>().into_iter().rev());
        clap_mangen::Man::new(command).render(&mut pages)?;
    }
    Ok(pages)
}

/// How answers are printed.
struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    fn show<T: Serialize>(&self, document: &T, render: impl FnOnce(&T, bool) -> String) -> Result<(), CliError> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if self.json {
            serde_json::to_writer_pretty(&mut out, document)?;
            writeln!(out)?;
        } else {
            out.write_all(render(document, self.colour).as_bytes())?;
        }
        Ok(out.flush()?)
    }

    /// One line, at once.
    fn line(&self, line: &str) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    }

    fn done(&self, sentence: &str) -> Result<(), CliError> {
        #[derive(Serialize)]
        struct Done<'a> {
            done: &'a str,
        }
        self.show(&Done { done: sentence }, |done, _| format!("{}\n", done.done))
    }
}

/// What stands for a weight as configured.
const AUTO: &str = "auto";

fn parse_weights(words: &[String]) -> Result<BTreeMap<String, Option<u32>>, CliError> {
    let mut weights = BTreeMap::new();
    for word in words {
        let Some((name, number)) = word.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(CliError::Argument(format!("{word:?} is no weight; give NAME=N, as in isp1=2")));
        };
        let weight = number.parse::<u16>().map(|weight| Some(u32::from(weight)));
        let Ok(weight) = weight.or_else(|error| if number == AUTO { Ok(None) } else { Err(error) }) else {
            return Err(CliError::Argument(format!(
                "{number:?} is no weight for {name}; give a number from 0 to 65535, or {AUTO} for the configured weight"
            )));
        };
        if weights.insert(name.to_owned(), weight).is_some() {
            return Err(CliError::Argument(format!("{name} is named twice; give each uplink one weight")));
        }
    }
    Ok(weights)
}

fn filter(flows: &FlowsArguments) -> Result<FlowFilter, CliError> {
    let net = |name: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => {
            let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            parsed.map(Some).ok_or_else(|| {
                CliError::Argument(format!("{text:?} is no address or prefix for --{name}; give one like 192.0.2.0/24"))
            })
        }
    };
    Ok(FlowFilter {
        uplink: flows.uplink.clone(),
        src: net("src", &flows.src)?,
        dst: net("dst", &flows.dst)?,
        proto: flows.proto.clone(),
        limit: flows.limit,
    })
}

fn parse_address(text: &str) -> Result<IpAddr, CliError> {
    text.parse().map_err(|_| CliError::Argument(format!("{text:?} is no address; give one like 192.0.2.10")))
}

/// An address with or without a port.
fn end(text: &str) -> Result<(IpAddr, Option<u16>), CliError> {
    let with_port = text.parse::<SocketAddr>().map(|end| (end.ip(), Some(end.port())));
    with_port.or_else(|_| text.parse().map(|address| (address, None))).map_err(|_| {
        CliError::Argument(format!("{text:?} is no address with or without a port; give one like 192.0.2.10:443"))
    })
}

fn explain_request(packet: ExplainArguments) -> Result<ExplainRequest, CliError> {
    let ((src, sport), (dst, dport)) = (end(&packet.src)?, end(&packet.dst)?);
    let ExplainArguments { proto, interface, dscp, .. } = packet;
    Ok(ExplainRequest { proto, src, sport, dst, dport, interface, dscp })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_an_address_and_may_have_a_port() {
        let parsed = |text: &str| end(text).map(|(address, port)| (address.to_string(), port));
        assert_eq!(parsed("192.0.2.1").unwrap(), ("192.0.2.1".to_owned(), None));
        assert_eq!(parsed("192.0.2.1:443").unwrap(), ("192.0.2.1".to_owned(), Some(443)));
        assert_eq!(parsed("[2001:db8::1]:443").unwrap(), ("2001:db8::1".to_owned(), Some(443)));
        for wrong in ["", "192.0.2", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.1:http", "host:80"] {
            let error = parsed(wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn man_pages_are_of_every_command() {
        let pages = String::from_utf8(man_pages().unwrap()).unwrap();
        let (first, _) = pages.split_once(".SH VERSION").unwrap();
        let command = <Arguments as clap::CommandFactory>::command();
        for subcommand in command.get_subcommands().map(clap::Command::get_name) {
            assert!(first.contains(&format!("mhctl\\-{subcommand}(1)")), "{subcommand} in {first}");
            assert!(pages.contains(&format!(".TH mhctl-{subcommand} 1")), "{subcommand}");
        }
        assert!(pages.contains(".TH mhctl-import-mwan3 1") && pages.contains("\\-\\-network"), "{pages}");
    }

    fn weights(words: &[&str]) -> Result<BTreeMap<String, Option<u32>>, String> {
        parse_weights(&words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn weights_are_parsed_whole_or_not_at_all() {
        let parsed = weights(&["isp1=2", "isp2=0", "lte=auto"]).unwrap();
        assert_eq!(parsed, [("isp1".into(), Some(2)), ("isp2".into(), Some(0)), ("lte".into(), None)].into());
        for (words, named) in [
            (&["isp1"][..], "isp1"),
            (&["=3"], "=3"),
            (&["isp1=x"], "isp1"),
            (&["isp1=65536"], "65535"),
            (&["isp1=-1"], "-1"),
            (&["isp1=1", "isp1=2"], "twice"),
        ] {
            let error = weights(words).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn filters_take_addresses_and_prefixes() {
        let arguments = |src: &str| FlowsArguments { src: Some(src.to_owned()), ..FlowsArguments::default() };
        assert_eq!(filter(&arguments("192.0.2.1")).unwrap().src.unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(filter(&arguments("192.0.2.0/24")).unwrap().src.unwrap().to_string(), "192.0.2.0/24");
        assert!(filter(&arguments("192.0.2")).unwrap_err().to_string().contains("--src"));
    }
}
