//! The far side of a router under measurement: inside hosts, gateways and the remote host, all of them BPF programs.
//!
//! ```text
//!  far: lan 02::10 ── lan0 02::01 ┌────────┐ wan1 02::02 ── wan1 :far 02::a1
//!       inside hosts              │ router │
//!       generator, sink           └────────┘ wan2 02::03 ── wan2 :far 02::a2
//! ```
//!
//! [`Far::establish`] begins flows and answers them; [`Far::rate`] counts how many frames a second get through in one direction. A frame is
//! written anew each time it is sent (see `mh-bench-ebpf`). Generator, router and sink share one core: the generator's thread is pinned, and
//! all else is softirq work that the kernel does where it is raised. The thread comes before all others that want the core.
//!
//! Failure behaviour: flows that are not complete after some tries, wrong checksums and answers to the wrong host are errors.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use ipnet::Ipv4Net;
use mh_bench_ebpf::{
    FLOW_OFFSET, FORWARD, HEAD_LEN, LAN, Learned, MAGIC, MAGIC_OFFSET, PORTS, Port, REVERSE, Seen, Traffic, WAN1, WAN2,
    map, mode, program,
};
use mh_common::checksum::fold;
use mh_tests::{
    lab::{Host, wait_until},
    packet::{Mac, Packet, Transport},
};
use nix::{libc, net::if_::if_nametoindex, sys::signal, unistd::gettid};

use crate::{machine, programs::Programs};

/// The first inside host.
pub const FIRST_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The remote host, one for all flows.
pub const REMOTE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 10), 4433);
/// The first source port of each inside host.
const FIRST_PORT: u16 = 20_000;
/// Ethernet addresses of the router's ports.
pub const ROUTER_MACS: [Mac; PORTS] = [[2, 0, 0, 0, 0, 0x01], [2, 0, 0, 0, 0, 0x02], [2, 0, 0, 0, 0, 0x03]];
/// Ethernet addresses of the far side's ports.
pub const FAR_MACS: [Mac; PORTS] = [[2, 0, 0, 0, 0, 0x10], [2, 0, 0, 0, 0, 0xa1], [2, 0, 0, 0, 0, 0xa2]];
/// The far side's interfaces, by port.
pub const FAR_INTERFACES: [&str; PORTS] = ["lan", "isp1", "isp2"];

/// Frames that the generator makes before the kernel handles what they caused.
const BATCH: u32 = 64;
/// The check sequence that a frame has on the wire, and not in memory.
const CHECK_SEQUENCE_LEN: usize = 4;
/// How often all flows are sent until each has an answer.
const TRIES: u32 = 32;
/// How often flows are sent to see whether they are alive.
const ALIVE_TRIES: u32 = 3;
/// How long frames may be on their way.
const DEADLINE: Duration = Duration::from_secs(20);
/// By how many frames two numbers may differ that are read before and after a sample while frames come in: at each port, one that has been counted in
/// the first and not yet in the second.
const MIDST: u64 = 2 * PORTS as u64;
/// Ends a run of the generator early: its handler does nothing.
const STOP: signal::Signal = signal::Signal::SIGUSR1;

/// The length of a frame on the wire, check sequence included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLen(pub usize);

impl FrameLen {
    /// The smallest.
    pub const SMALL: Self = Self(64);
    /// In the middle.
    pub const MIDDLE: Self = Self(512);
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From inside to outside.
    Forward,
    /// Back.
    Reverse,
}

impl Direction {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
        }
    }

    const fn index(self) -> u32 {
        match self {
            Self::Forward => FORWARD,
            Self::Reverse => REVERSE,
        }
    }

    const fn generator(self) -> &'static str {
        match self {
            Self::Forward => program::GENERATE_FORWARD,
            Self::Reverse => program::GENERATE_REVERSE,
        }
    }
}

/// What the far side is to see of a flow that went out.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Where source addresses are from, by uplink.
    pub sources: [Ipv4Net; 2],
    /// Whether frames carry the receiver's Ethernet address.
    pub routed: bool,
}

/// What the generator sends.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Which way.
    pub direction: Direction,
    /// Frames of this length.
    pub frame: FrameLen,
    /// The first flow.
    pub first: u32,
    /// How many flows are visited in turn.
    pub flows: u32,
}

/// How flows began.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// How many a second: those that came out, and those that were tried.
    pub rate: Rate,
    /// How many came out in all.
    pub accepted: u64,
}

/// What was seen while each flow was sent once and answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    inside: Seen,
    outside: Seen,
}

impl Answers {
    fn plus(self, other: Self) -> Self {
        Self { inside: self.inside.plus(other.inside), outside: self.outside.plus(other.outside) }
    }
}

/// A number of frames a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Received.
    pub received: f64,
    /// Sent.
    pub sent: f64,
}

/// What was counted at one moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    /// Received at the sinks.
    seen: Seen,
    sent: u64,
}

/// The far side.
#[derive(Debug)]
pub struct Far {
    host: Host,
    programs: Programs,
    ifindex: [u32; PORTS],
    generation: u16,
    core: usize,
}

impl Far {
    /// Puts the programs on the interfaces of `host`, which are there: see [`FAR_INTERFACES`]. `flows`: the most that are used.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(host: &Host, flows: u32) -> Result<Self> {
        let mut programs = Programs::load(flows)?;
        let mut ifindex = [0; PORTS];
        for ((name, interface), index) in program::FAR.into_iter().zip(FAR_INTERFACES).zip(&mut ifindex) {
            programs.attach(name, host, interface)?;
            *index = host.enter(|| if_nametoindex(interface))?.with_context(|| format!("index of {interface}"))?;
        }
        for name in [program::GENERATE_FORWARD, program::GENERATE_REVERSE] {
            programs.program(name)?;
        }
        install_handler()?;
        Ok(Self { host: host.clone(), programs, ifindex, generation: 0, core: machine::core()? })
    }

    /// Begins flows and answers each, until all have been seen on both sides. Returns how many each uplink got.
    ///
    /// # Errors
    /// If some are not complete after some tries, or what arrives is wrong.
    pub fn establish(&mut self, flows: u32, expected: &Expected) -> Result<[u64; 2]> {
        let before = [self.programs.seen(WAN1)?, self.programs.seen(WAN2)?];
        self.generation = (self.generation + 1) % Learned::GENERATIONS;
        let mut all = Answers::default();
        for _ in 0..TRIES {
            let answers = self.pass(flows, expected)?;
            ensure!(answers.outside.wrong == 0, "frames came out wrong, or flows changed: {answers:?}");
            all = all.plus(answers);
            if all.inside.flows == u64::from(flows) && all.outside.flows == u64::from(flows) {
                let [one, two] =
                    [self.programs.seen(WAN1)?.since(before[0]), self.programs.seen(WAN2)?.since(before[1])];
                return Ok([one.flows, two.flows]);
            }
        }
        bail!("of {flows} flows, not all were answered: {all:?}")
    }

    /// Sends each flow that was established, and answers it: how many still get through both ways as they did.
    ///
    /// # Errors
    /// If what arrives is wrong.
    pub fn alive(&mut self, flows: u32, expected: &Expected) -> Result<u64> {
        let mut most = 0;
        // A batch of frames may be lost on the way while the core does something else: that is no flow's end.
        for _ in 0..ALIVE_TRIES {
            let answers = self.pass(flows, expected)?;
            // Each that is translated in another way is answered too.
            most = most.max(answers.inside.packets.saturating_sub(answers.outside.wrong));
            if most >= u64::from(flows) {
                break;
            }
        }
        Ok(most)
    }

    /// Has established flows used for so long.
    ///
    /// # Errors
    /// If what arrives is wrong.
    pub fn keep(&mut self, flows: u32, expected: &Expected, time: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.pass(flows, expected)?;
        }
        Ok(())
    }

    /// Sends each flow once with the far side answering.
    fn pass(&mut self, flows: u32, expected: &Expected) -> Result<Answers> {
        self.set_ports(expected, [mode::VERIFY, mode::REFLECT, mode::REFLECT])?;
        let before = Answers { inside: self.programs.seen(LAN)?, outside: self.outside()? };
        let load = Load { direction: Direction::Forward, frame: FrameLen::SMALL, first: 0, flows };
        self.set_traffic(load)?;
        self.send(load, flows, || Ok(()))?;
        self.settle()?;
        let inside = self.programs.seen(LAN)?.since(before.inside);
        let outside = self.outside()?.since(before.outside);
        let answers = Answers { inside, outside };
        ensure!(inside.wrong == 0, "answers came back wrong: {answers:?}");
        ensure!(
            outside.expected == outside.packets && inside.expected == inside.packets,
            "frames came out with unexpected addresses: {answers:?}, expected {expected:?}"
        );
        Ok(answers)
    }

    /// How many frames a second get through over `window`. Flows have been established.
    ///
    /// # Errors
    /// If nothing arrives, or what arrives is not as expected.
    pub fn rate(&mut self, load: Load, expected: &Expected, window: Duration) -> Result<Rate> {
        let direction = load.direction;
        let (from, to) = self.watch(load, expected, u32::MAX, |far| sample(window, || far.moment(direction)))?;
        let seen = to.seen.since(from.seen);
        ensure!(
            seen.expected.abs_diff(seen.packets) <= MIDST,
            "{} frames came out unexpected: {seen:?}",
            direction.name()
        );
        to.rate_since(&from)
    }

    /// How many frames a second a router takes that lets none through; `dropped` tells how many it has.
    ///
    /// # Errors
    /// If it takes none.
    pub fn rate_of_drops(
        &mut self,
        load: Load,
        expected: &Expected,
        window: Duration,
        dropped: impl Fn() -> Result<u64>,
    ) -> Result<Rate> {
        let (from, to) = self.watch(load, expected, u32::MAX, |far| {
            sample(window, || {
                let moment = far.moment(load.direction)?;
                Ok(Moment { seen: Seen { packets: dropped()?, ..Seen::default() }, ..moment })
            })
        })?;
        to.rate_since(&from)
    }

    /// Begins flows, one frame each and never answered; how fast that goes while it goes on, and how many came out in the end.
    ///
    /// # Errors
    /// If none comes out, or what comes out is not as expected.
    pub fn begin(&mut self, first: u32, flows: u32, expected: &Expected) -> Result<Begun> {
        let load = Load { direction: Direction::Forward, frame: FrameLen::SMALL, first, flows };
        let before = self.moment(load.direction)?;
        let total = u64::from(flows);
        let (from, to) = self.watch(load, expected, flows, |far| {
            let mut seen: Option<(Moment, Moment)> = None;
            wait_until("new flows to be sent", DEADLINE, || {
                let now = far.moment(load.direction)?;
                if (1..total).contains(&now.sent) {
                    seen = Some(seen.map_or((now, now), |(from, _)| (from, now)));
                }
                Ok(now.sent >= total)
            })?;
            seen.context("the new flows were sent before anybody could look")
        })?;
        let all = self.moment(load.direction)?.seen.since(before.seen);
        ensure!(all.expected == all.packets, "new flows came out unexpected: {all:?}");
        let rate = to.rate_since(&from)?;
        Ok(Begun { rate, accepted: all.packets })
    }

    /// Sends `repeat` frames, or (if that is the greatest number) until `work` is done, while `work` watches.
    fn watch<T>(
        &mut self,
        load: Load,
        expected: &Expected,
        repeat: u32,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        self.set_ports(expected, [mode::SINK; PORTS])?;
        self.set_traffic(load)?;
        let done = self.send(load, repeat, || work(self))?;
        self.settle()?;
        Ok(done)
    }

    /// What has been counted so far at the sinks of a direction.
    ///
    /// # Errors
    /// If the counters can't be read.
    fn moment(&self, direction: Direction) -> Result<Moment> {
        let seen = match direction {
            Direction::Forward => self.outside()?,
            Direction::Reverse => self.programs.seen(LAN)?,
        };
        let traffic: Traffic = self.programs.get(map::TRAFFIC, direction.index())?;
        Ok(Moment { at: Instant::now(), seen, sent: traffic.sent })
    }

    /// Waits until nothing arrives any more.
    ///
    /// # Errors
    /// If that takes too long.
    fn settle(&self) -> Result<()> {
        let now = || anyhow::Ok((self.programs.seen(LAN)?, self.outside()?));
        let mut last = now()?;
        wait_until("frames to have arrived", DEADLINE, || {
            let (before, now) = (last, now()?);
            last = now;
            Ok(before == now)
        })?;
        Ok(())
    }

    fn outside(&self) -> Result<Seen> {
        Ok(self.programs.seen(WAN1)?.plus(self.programs.seen(WAN2)?))
    }

    fn set_ports(&mut self, expected: &Expected, modes: [u32; PORTS]) -> Result<()> {
        let remote = Ipv4Net::from(*REMOTE.ip());
        let sources = [remote, expected.sources[0], expected.sources[1]];
        for ((((number, mode), source), mac), ifindex) in (0..).zip(modes).zip(sources).zip(FAR_MACS).zip(self.ifindex)
        {
            let head = frame_of(Direction::Forward, FrameLen::SMALL);
            let [mask, to] = [[0xff; 6], mac].map(|mac| if expected.routed { lead(mac, [0; 2]) } else { 0 });
            let port = Port {
                mode,
                source: u32::from(source.network()).to_be(),
                source_mask: u32::from(source.netmask()).to_be(),
                generation: self.generation.into(),
                to,
                to_mask: mask,
                payload_sum: words(&head[MAGIC_OFFSET..]),
                first_address: FIRST_HOST.into(),
                first_port: FIRST_PORT.into(),
                ifindex,
            };
            self.programs.set(map::PORTS, number, port)?;
        }
        Ok(())
    }

    fn set_traffic(&mut self, Load { direction, frame, first, flows }: Load) -> Result<()> {
        ensure!(flows > 0, "no flow to send");
        let bytes = frame_of(direction, frame);
        let mut template = [0; HEAD_LEN / 8];
        for (word, bytes) in template.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let mut leads = [0; PORTS];
        for ((lead_of, to), from) in leads.iter_mut().zip(ROUTER_MACS).zip(FAR_MACS) {
            *lead_of = lead(to, [from[0], from[1]]);
        }
        let udp_len = u16::from_be_bytes([bytes[38], bytes[39]]);
        let pseudo = words(&bytes[26..34]) + u32::from(17u16.to_be()) + u32::from(udp_len.to_be());
        let traffic = Traffic {
            template,
            lead: leads,
            sent: 0,
            ifindex: self.ifindex,
            ip_sum: words(&bytes[14..34]),
            udp_sum: pseudo + words(&bytes[34..]),
            first,
            end: first + flows,
            next: first,
            first_address: FIRST_HOST.into(),
            first_port: FIRST_PORT.into(),
            generation: self.generation.into(),
            reserved: 0,
        };
        self.programs.set(map::TRAFFIC, direction.index(), traffic)
    }

    /// Runs the generator on its core, and `work` beside it; returns when both are done. With the greatest number for `repeat`, the end of
    /// `work` is the generator's.
    fn send<T>(&self, load: Load, repeat: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Load { direction, frame, .. } = load;
        let endless = repeat == u32::MAX;
        let generator = self.programs.loaded(direction.generator())?;
        let _turn = machine::Turn::wait(machine::Shared::Core)?;
        let bytes = frame_of(direction, frame);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let (sender, thread_id) = mpsc::sync_channel(1);
            let done = &done;
            let running = scope.spawn(move || {
                let result = self.host.enter(|| {
                    // The receiver waits for it.
                    let _ = sender.send(gettid());
                    machine::pin(self.core)?;
                    machine::come_first()?;
                    run(generator, &bytes, repeat)
                });
                done.store(true, Ordering::Release);
                result
            });
            let id = thread_id.recv().context("the generator did not start")?;
            let worked = work();
            if endless || worked.is_err() {
                // Again and again: a signal right before the system call would be without effect.
                wait_until("the generator to stop", DEADLINE, || {
                    if !done.load(Ordering::Acquire) {
                        interrupt(id);
                    }
                    Ok(done.load(Ordering::Acquire))
                })?;
            }
            let ran = running.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?;
            let worked = worked?;
            ran??;
            Ok(worked)
        })
    }
}

impl Moment {
    /// The rates between two moments.
    ///
    /// # Errors
    /// If nothing was received.
    fn rate_since(&self, from: &Self) -> Result<Rate> {
        let seconds = (self.at - from.at).as_secs_f64();
        let received = self.seen.packets - from.seen.packets;
        let sent = self.sent - from.sent;
        ensure!(received > 0, "of {sent} frames in {seconds} s, none got through");
        #[allow(clippy::cast_precision_loss, reason = "counts of frames are far below 2^52")]
        let per_second = |count: u64| count as f64 / seconds;
        Ok(Rate { received: per_second(received), sent: per_second(sent) })
    }
}

/// Two moments with so much time between them, from when frames arrive.
fn sample(window: Duration, now: impl Fn() -> Result<Moment>) -> Result<(Moment, Moment)> {
    let begun = now()?.seen.packets;
    wait_until("the first frames to arrive", DEADLINE, || Ok(now()?.seen.packets > begun))?;
    let from = now()?;
    thread::sleep(window);
    Ok((from, now()?))
}

/// Whether so many flows are all of them, but for a few whose frames were lost on the way.
#[must_use]
pub const fn are_nearly_all(some: u64, flows: u32) -> bool {
    const LOST: u64 = 1000;
    some + flows as u64 / LOST >= flows as u64
}

/// Runs the generator until it has sent as many frames, or a signal ends it.
fn run(generator: &Xdp, frame: &[u8], repeat: u32) -> Result<()> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    };
    match generator.test_run(options) {
        Ok(_) => Ok(()),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINTR) => Ok(()),
        Err(error) => Err(error).context("run the generator"),
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// Makes [`STOP`] interrupt system calls and do nothing else.
fn install_handler() -> Result<()> {
    let action =
        signal::SigAction::new(signal::SigHandler::Handler(nothing), signal::SaFlags::empty(), signal::SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { signal::sigaction(STOP, &action) }.context("install a signal handler")?;
    Ok(())
}

/// Sends [`STOP`] to a thread of this process.
fn interrupt(thread: nix::unistd::Pid) {
    // SAFETY: a system call without pointers. A thread that has ended meanwhile is an error that does not matter.
    unsafe { libc::syscall(libc::SYS_tgkill, nix::unistd::getpid().as_raw(), thread.as_raw(), STOP as libc::c_int) };
}

/// A frame in memory, with zeros where flows differ.
fn frame_of(direction: Direction, FrameLen(len): FrameLen) -> Vec<u8> {
    const HEADERS_LEN: usize = 42;
    let len = (len - CHECK_SEQUENCE_LEN).max(HEAD_LEN);
    let (remote, nobody) = (REMOTE.to_string(), "0.0.0.0:0");
    let (at, src, dst) = match direction {
        Direction::Forward => (LAN, nobody, remote.as_str()),
        Direction::Reverse => (WAN1, remote.as_str(), nobody),
    };
    let (to, from) = (ROUTER_MACS[at as usize], FAR_MACS[at as usize]);
    let mut packet = Packet::new(to, from, src, dst, Transport::Udp);
    packet.payload = (0u8..=255).cycle().take(len - HEADERS_LEN).collect();
    let head = [&MAGIC.to_ne_bytes()[..], &[0; 4]].concat();
    packet.payload[..head.len()].copy_from_slice(&head);
    let mut frame = packet.build();
    for checksum in [24, 40] {
        frame[checksum..checksum + 2].fill(0);
    }
    debug_assert_eq!(MAGIC_OFFSET + 2, FLOW_OFFSET);
    frame
}

/// The first eight bytes of a frame: the receiver's Ethernet address, and the beginning of the sender's.
const fn lead(to: Mac, from: [u8; 2]) -> u64 {
    let [a, b, c, d, e, f] = to;
    u64::from_ne_bytes([a, b, c, d, e, f, from[0], from[1]])
}

/// The sum of 16-bit words as in memory, folded; the length is even.
fn words(bytes: &[u8]) -> u32 {
    let words = bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_ne_bytes(*word)));
    fold(words.sum()).into()
}
