//! The real programs on the internet host and the clients: nginx and curl, iperf3.

use std::fs;
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::traffic::Split;
use crate::lab::{Host, Lab, Process, SERVER, wait_until};

/// How long a server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the page that nginx serves.
const PAGE_BYTES: usize = 1_000_000;

/// nginx and iperf3 on the internet host.
#[derive(Debug)]
pub(super) struct Services {
    server: Host,
    page: Vec<u8>,
    access_log: std::path::PathBuf,
    _nginx: Process,
    iperf3: Process,
}

impl Services {
    /// Starts both and waits until they listen.
    pub(super) fn start(lab: &Lab, server: &Host) -> Result<Self> {
        let root = lab.directory().join("www");
        fs::create_dir(&root)?;
        let page: Vec<u8> = (0..PAGE_BYTES / 10).flat_map(|line| format!("{line:09}\n").into_bytes()).collect();
        fs::write(root.join("page.txt"), &page)?;
        let access_log = lab.directory().join("nginx-access.log");
        let config = lab.directory().join("nginx.conf");
        // One process, as the laboratory's guard expects; all its files in the laboratory's directory.
        let directory = lab.directory().display();
        fs::write(
            &config,
            format!(
                "daemon off; master_process off; user root; pid {directory}/nginx.pid; error_log stderr;\n\
                 events {{}}\n\
                 http {{\n\
                   log_format source '$remote_addr:$remote_port';\n\
                   access_log {directory}/nginx-access.log source;\n\
                   client_body_temp_path {directory}/nginx-1; proxy_temp_path {directory}/nginx-2;\n\
                   fastcgi_temp_path {directory}/nginx-3; uwsgi_temp_path {directory}/nginx-4; scgi_temp_path {directory}/nginx-5;\n\
                   server {{ listen {SERVER}:80; root {directory}/www; }}\n\
                 }}\n"
            ),
        )?;
        let config = config.display().to_string();
        let mut nginx = server.spawn("nginx", &["nginx", "-e", "stderr", "-c", &config])?;
        let mut iperf3 = server.spawn("iperf3", &["iperf3", "-s", "-B", &SERVER.to_string(), "--forceflush"])?;
        iperf3.wait_for_line("Server listening", START_TIMEOUT)?;
        wait_until("nginx to listen", START_TIMEOUT, || {
            ensure!(nginx.is_running(), "nginx ended: {}", nginx.stderr());
            Ok(server.enter(|| TcpStream::connect(SocketAddrV4::new(SERVER, 80)))?.is_ok())
        })?;
        Ok(Self { server: server.clone(), page, access_log, _nginx: nginx, iperf3 })
    }

    /// Fetches the page `count` times with curl, each on a connection of its own, and compares every byte. Gives the sources
    /// that nginx logged for them.
    pub(super) fn fetch(&self, client: &Host, count: usize) -> Result<Split> {
        let before = self.logged()?.len();
        let url = format!("http://{SERVER}/page.txt");
        for _ in 0..count {
            let body = client.run(&["curl", "-sS", "--fail", "--max-time", "10", &url])?;
            ensure!(body.as_bytes() == self.page, "{}: {} bytes of another page", client.name(), body.len());
        }
        // nginx logs a request when it has sent the answer, which may be after curl has got it.
        wait_until("nginx's log", START_TIMEOUT, || Ok(self.logged()?.len() >= before + count))?;
        Ok(Split::of(self.logged()?.split_off(before)))
    }

    /// The clients of all requests but the laboratory's own, as nginx saw them.
    fn logged(&self) -> Result<Vec<SocketAddrV4>> {
        let log = fs::read_to_string(&self.access_log).with_context(|| self.server.name().to_owned())?;
        let complete = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete.lines().map(|line| line.parse().with_context(|| format!("nginx logged {line:?}"))).collect()
    }

    /// Runs iperf3 from `client` for two seconds, downwards if `reverse`; gives bits per second as the receiver counted.
    pub(super) fn throughput_bps(&mut self, client: &Host, reverse: bool) -> Result<f64> {
        ensure!(self.iperf3.is_running(), "iperf3's server ended: {}", self.iperf3.stderr());
        let server = SERVER.to_string();
        let mut arguments = vec!["iperf3", "-c", &server, "-t", "2", "-J", "--connect-timeout", "3000"];
        arguments.extend(reverse.then_some("-R"));
        let printed = client.run(&arguments)?;
        let result: Value = serde_json::from_str(&printed).context("iperf3's JSON")?;
        let received = &result["end"]["sum_received"]["bits_per_second"];
        received.as_f64().with_context(|| format!("iperf3 says {}", result["error"]))
    }
}
