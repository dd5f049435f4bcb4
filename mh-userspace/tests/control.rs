//! The control socket from both sides, against a backend that is no daemon; and mhctl as a process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use mh_userspace::control::{
    api::{
        Backend, Binding, ByCapacity, ControlError, Count, DrainRequest, EventKind, ExplainRequest, Explanation, Flow,
        FlowFilter, HealthOverride, HealthRequest, Member, MemberWeight, Policy, Reloaded, Rule, Set, SetsRequest,
        Stats, Status, UplinkState, Version, Weight, WeightsRequest,
    },
    client::{Client, ClientError},
    events::{EventLog, Happening, MAX_FOLLOWERS},
    server,
};
use tokio::sync::oneshot;

/// Knows one uplink, isp1, and a number of flows.
#[derive(Default)]
struct Fake {
    events: EventLog,
}

fn known(uplink: &str) -> Result<(), ControlError> {
    if uplink == "isp1" { Ok(()) } else { Err(ControlError::NotFound(format!("there is no uplink {uplink:?}"))) }
}

fn nothing<T>() -> Result<T, ControlError> {
    Err(ControlError::Internal("not asked for in this test".to_owned()))
}

impl Backend for Fake {
    async fn status(&self) -> Result<Status, ControlError> {
        nothing()
    }
    async fn weights(&self) -> Result<Vec<Weight>, ControlError> {
        let (configured, weight, effective_weight) = (2, 3, 3);
        let name = "isp1".to_owned();
        let (configured_by_capacity, by_capacity, share) = (false, false, 1.0);
        Ok(vec![Weight { name, configured, configured_by_capacity, weight, by_capacity, effective_weight, share }])
    }
    async fn set_weights(&self, request: WeightsRequest) -> Result<Vec<Weight>, ControlError> {
        for (name, weight) in &request.weights {
            known(name)?;
            if let Some(weight) = weight.filter(|weight| *weight > 65535) {
                return Err(ControlError::Invalid(format!("weight {weight} of {name} is too large")));
            }
        }
        self.weights().await
    }
    async fn set_drain(&self, uplink: String, _: bool, _: DrainRequest) -> Result<(), ControlError> {
        known(&uplink)
    }
    async fn set_health(&self, uplink: String, _: HealthRequest) -> Result<(), ControlError> {
        known(&uplink)
    }
    async fn flows(&self, filter: FlowFilter) -> Result<Vec<Flow>, ControlError> {
        let flow = Flow {
            protocol: "udp".to_owned(),
            src: "192.168.1.10".parse().unwrap(),
            sport: 1,
            dst: "192.0.2.10".parse().unwrap(),
            dport: 2,
            nat_src: "198.51.100.2".parse().unwrap(),
            nat_sport: 3,
            uplink: "isp1".to_owned(),
            state: "new".to_owned(),
            age_s: 0,
            idle_s: 0,
            packets_out: 1,
            bytes_out: 1,
            packets_in: 0,
            bytes_in: 0,
        };
        Ok(vec![flow; filter.limit.unwrap_or(1)])
    }
    async fn count_flows(&self, filter: FlowFilter) -> Result<Count, ControlError> {
        // The filter as it arrived, so that the test sees it.
        assert_eq!(filter.src.unwrap().to_string(), "192.168.1.0/24");
        Ok(Count { count: 17 })
    }
    async fn flush_flows(&self, _: FlowFilter) -> Result<Count, ControlError> {
        nothing()
    }
    async fn bindings(&self) -> Result<Vec<Binding>, ControlError> {
        Ok(Vec::new())
    }
    async fn stats(&self) -> Result<Stats, ControlError> {
        nothing()
    }
    async fn rules(&self) -> Result<Vec<Rule>, ControlError> {
        let rule = |index, action: &str, hits| Rule { index, action: action.to_owned(), hits, ..Rule::default() };
        let bank = Rule { name: Some("bank".to_owned()), dscp: vec![46], ..rule(Some(1), "uplink:isp1", 5) };
        Ok(vec![bank, rule(None, "policy:default", 6)])
    }
    async fn policies(&self) -> Result<Vec<Policy>, ControlError> {
        let member = |uplink: &str, weight| Member {
            uplink: uplink.to_owned(),
            weight,
            effective_weight: 1,
            share: 0.5,
            state: UplinkState::Up,
        };
        let by_capacity = MemberWeight::ByCapacity(ByCapacity::Capacity);
        let tier = vec![member("isp1", MemberWeight::Fixed(2)), member("isp2", by_capacity)];
        Ok(vec![Policy { name: "default".to_owned(), tiers: vec![tier], ..Policy::default() }])
    }
    async fn sets(&self, request: SetsRequest) -> Result<Vec<Set>, ControlError> {
        Ok(vec![Set { name: "banks".to_owned(), prefix: request.contains.map(Into::into), ..Set::default() }])
    }
    async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        if request.interface.as_deref() == Some("eth 9") {
            return Err(ControlError::NotFound("\"eth 9\" is no managed interface; those are lan0".to_owned()));
        }
        Ok(Explanation {
            verdict: "new".to_owned(),
            rule: Some(request.proto),
            rule_index: None,
            policy: None,
            tier: Some(1),
            slot: request.dscp.map(u32::from),
            uplink: None,
            nat_src: Some(request.src),
            nat_sport: request.sport,
            existing: false,
            sticky: false,
            interface: request.interface,
            host: false,
            why: vec![format!("{}:{:?}", request.dst, request.dport)],
        })
    }
    fn event_log(&self) -> &EventLog {
        &self.events
    }
    async fn reload(&self) -> Result<Reloaded, ControlError> {
        Err(ControlError::Invalid("mh.toml:1:1: bad".to_owned()))
    }
    async fn detach(&self) -> Result<(), ControlError> {
        Err(ControlError::Conflict("mhd is ending".to_owned()))
    }
    async fn version(&self) -> Result<Version, ControlError> {
        nothing()
    }
}

/// Runs a test beside a server on a socket in a directory of its own.
fn served<T>(test: impl AsyncFnOnce(PathBuf) -> T) -> T {
    served_with_events(async |path, _| test(path).await)
}

/// The same, with the events that the server tells; they end with the test.
fn served_with_events<T>(test: impl AsyncFnOnce(PathBuf, EventLog) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper").join("mhd.sock");
        let listener = server::bind(&path).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let fake = Fake::default();
        let events = fake.events.clone();
        let task = tokio::spawn(server::serve(listener, Arc::new(fake), async move {
            let _ = stopped.await;
        }));
        let result = test(path.clone(), events.clone()).await;
        events.close();
        drop(stop);
        task.await.unwrap().unwrap();
        assert!(!path.exists(), "the socket's file goes with the server");
        result
    })
}

async fn raw(path: &Path, request: &str) -> String {
    let (path, request) = (path.to_owned(), request.to_owned());
    let exchange = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    exchange.await.unwrap()
}

#[test]
fn bad_requests_get_their_reason_as_json() {
    served(async |path| {
        for (request, status, word) in [
            ("GET /v1/nothing HTTP/1.1\r\nhost: mh\r\n\r\n", "404", "/v1/nothing"),
            ("POST /v1/status HTTP/1.1\r\nhost: mh\r\ncontent-length: 0\r\n\r\n", "405", "POST"),
            ("PUT /v1/weights HTTP/1.1\r\nhost: mh\r\ncontent-length: 2\r\n\r\n{]", "400", "JSON"),
            ("PUT /v1/weights HTTP/1.1\r\nhost: mh\r\ncontent-length: 9\r\n\r\n{\"wat\":1}", "400", "wat"),
            (
                "PUT /v1/weights HTTP/1.1\r\nhost: mh\r\ncontent-length: 26\r\n\r\n{\"weights\":{\"isp1\":70000}}",
                "400",
                "too large",
            ),
            ("PUT /v1/uplinks/isp9/drain HTTP/1.1\r\nhost: mh\r\ncontent-length: 0\r\n\r\n", "404", "isp9"),
            ("PUT /v1/uplinks/isp1/drain HTTP/1.1\r\nhost: mh\r\ncontent-length: 9\r\n\r\n{\"wat\":1}", "400", "wat"),
            ("PUT /v1/uplinks/isp1/health HTTP/1.1\r\nhost: mh\r\ncontent-length: 5\r\n\r\n\"ill\"", "400", "auto"),
            ("GET /v1/flows?limit=many HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "limit"),
            ("GET /v1/flows?colour=red HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "colour"),
            ("POST /v1/reload HTTP/1.1\r\nhost: mh\r\ncontent-length: 0\r\n\r\n", "400", "mh.toml:1:1"),
            ("POST /v1/detach HTTP/1.1\r\nhost: mh\r\ncontent-length: 0\r\n\r\n", "409", "ending"),
            ("GET /v1/events?since=never HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "since"),
            ("GET /v1/events?until=1 HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "until"),
            ("GET /v1/sets?contains=me HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "contains"),
            ("GET /v1/explain?proto=tcp&dst=192.0.2.1 HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "src"),
            ("GET /v1/explain?proto=tcp&src=1.2.3.4&dst=1.2.3.5&sport=x HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "sport"),
            ("GET /v1/explain?proto=tcp&src=1.2.3.4&dst=1.2.3.5&wat=1 HTTP/1.1\r\nhost: mh\r\n\r\n", "400", "wat"),
            (
                "GET /v1/explain?proto=tcp&src=1.2.3.4&dst=1.2.3.5&interface=eth%209 HTTP/1.1\r\nhost: mh\r\n\r\n",
                "404",
                "lan0",
            ),
            ("GET /v1/stats HTTP/1.1\r\nhost: mh\r\n\r\n", "500", "not asked for"),
        ] {
            let answer = raw(&path, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            let document: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(document["error"].as_str().unwrap().contains(word), "{request:?}: {answer}");
        }
    });
}

#[test]
fn bodies_that_say_less_are_taken() {
    served(async |path| {
        for request in [
            "PUT /v1/uplinks/isp1/drain HTTP/1.1\r\nhost: mh\r\n\r\n",
            "PUT /v1/uplinks/isp1/drain HTTP/1.1\r\nhost: mh\r\ncontent-length: 2\r\n\r\n{}",
            "DELETE /v1/uplinks/isp1/drain HTTP/1.1\r\nhost: mh\r\ncontent-length: 13\r\n\r\n{\"save\":true}",
            "PUT /v1/uplinks/isp1/health HTTP/1.1\r\nhost: mh\r\ncontent-length: 6\r\n\r\n\"down\"",
            "PUT /v1/uplinks/isp1/health HTTP/1.1\r\nhost: mh\r\ncontent-length: 15\r\n\r\n{\"health\":\"up\"}",
        ] {
            let answer = raw(&path, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{request:?}: {answer}");
        }
    });
}

#[test]
fn the_client_and_the_server_understand_each_other() {
    served(async |path| {
        let client = Client::new(&path);
        assert_eq!(client.weights().await.unwrap()[0].weight, 3);
        client.set_drain("isp1", true, &DrainRequest::default()).await.unwrap();
        client.set_drain("isp1", false, &DrainRequest { save: true }).await.unwrap();
        client.set_health("isp1", &HealthRequest { health: HealthOverride::Down, save: true }).await.unwrap();
        let error = client.set_drain("is/p 9", true, &DrainRequest::default()).await.unwrap_err().to_string();
        assert!(error.contains("is/p 9"), "{error}");
        let filter = FlowFilter { src: Some("192.168.1.0/24".parse().unwrap()), ..FlowFilter::default() };
        assert_eq!(client.count_flows(&filter).await.unwrap().count, 17);
        let many = FlowFilter { limit: Some(50_000), ..FlowFilter::default() };
        assert_eq!(client.flows(&many).await.unwrap().len(), 50_000);
    });
}

#[test]
fn what_is_asked_about_policy_arrives_as_asked() {
    served(async |path| {
        let client = Client::new(&path);
        let rules = client.rules().await.unwrap();
        assert_eq!((rules[0].label().as_deref(), rules[0].hits, rules[1].index), (Some("bank"), 5, None));
        let weights: Vec<String> =
            client.policies().await.unwrap()[0].tiers[0].iter().map(|member| member.weight.to_string()).collect();
        assert_eq!(weights, ["2", "capacity"]);
        assert_eq!(client.sets(&SetsRequest::default()).await.unwrap()[0].prefix, None);
        let contains = Some("203.0.113.7".parse().unwrap());
        let sets = client.sets(&SetsRequest { contains }).await.unwrap();
        assert_eq!(sets[0].prefix, Some("203.0.113.7/32".parse().unwrap()));
        let request = ExplainRequest {
            proto: "t&p".to_owned(),
            src: "192.168.1.10".parse().unwrap(),
            sport: Some(40_001),
            dst: "192.0.2.10".parse().unwrap(),
            dport: None,
            interface: Some("lan 0".to_owned()),
            dscp: Some(46),
        };
        let answer = client.explain(&request).await.unwrap();
        assert_eq!((answer.rule.as_deref(), answer.interface.as_deref()), (Some("t&p"), Some("lan 0")));
        assert_eq!((answer.nat_src, answer.nat_sport, answer.slot), (Some(request.src), Some(40_001), Some(46)));
        assert_eq!(answer.why, ["192.0.2.10:None"]);
        let error = client.explain(&ExplainRequest { interface: Some("eth 9".to_owned()), ..request }).await;
        assert!(error.unwrap_err().to_string().contains("eth 9"));
    });
}

#[test]
fn a_stalled_client_holds_up_nobody() {
    served(async |path| {
        let stalled: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&path).unwrap()).collect();
        (&stalled[0]).write_all(b"GET /v1/wei").unwrap();
        assert_eq!(Client::new(&path).weights().await.unwrap().len(), 1);
        drop(stalled);
    });
}

#[test]
fn a_living_daemon_is_refused_and_a_dead_ones_socket_is_replaced() {
    served(async |path| {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o660);
        let error = server::bind(&path).unwrap_err();
        assert!(matches!(error, server::BindError::InUse(_)), "{error}");
        let dead = path.with_file_name("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        drop(server::bind(&dead).unwrap());
        let file = path.with_file_name("file");
        std::fs::write(&file, "something of somebody's").unwrap();
        assert!(matches!(server::bind(&file).unwrap_err(), server::BindError::NotSocket(_)));
        assert!(file.exists());
    });
}

fn warning(text: &str) -> Happening {
    Happening::new(EventKind::Warning, text)
}

#[test]
fn events_are_listed_and_followed() {
    served_with_events(async |path, events| {
        let client = Client::new(&path);
        assert_eq!(client.events(None).await.unwrap(), []);
        events.push(warning("one"));
        events.push(warning("two"));
        let reasons = |list: Vec<mh_userspace::control::api::Event>| -> Vec<String> {
            list.into_iter().map(|event| event.reason).collect()
        };
        assert_eq!(reasons(client.events(None).await.unwrap()), ["one", "two"]);
        assert_eq!(reasons(client.events(Some(1)).await.unwrap()), ["two"]);
        // Each event that is seen makes the next one: so they are told as they happen, and the last one ends it.
        let mut seen = Vec::new();
        let log = events.clone();
        let followed: Result<(), ClientError> = client
            .follow_events(Some(1), |event| {
                seen.push(event.reason);
                match seen.len() {
                    4 => log.close(),
                    n => log.push(warning(&format!("after {n}"))),
                }
                Ok(())
            })
            .await;
        followed.unwrap();
        assert_eq!(seen, ["two", "after 1", "after 2", "after 3"]);
    });
}

#[test]
fn followers_come_and_go_and_are_bounded() {
    served_with_events(async |path, events| {
        let follow = || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: mh\r\n\r\n").unwrap();
            let mut head = [0; 12];
            tokio::task::block_in_place(|| stream.read_exact(&mut head)).unwrap();
            (stream, String::from_utf8(head.to_vec()).unwrap())
        };
        let mut followers: Vec<_> = (0..MAX_FOLLOWERS).map(|_| follow()).collect();
        assert!(followers.iter().all(|(_, head)| head == "HTTP/1.1 200"), "{followers:?}");
        assert_eq!(follow().1, "HTTP/1.1 409");
        // None of them reads, and nobody else minds.
        (0..5000).for_each(|n| events.push(warning(&format!("{n}: {}", "x".repeat(200)))));
        assert_eq!(Client::new(&path).weights().await.unwrap().len(), 1);
        // The place of one that goes away is free, though nothing happens that it could be told of.
        followers.truncate(MAX_FOLLOWERS - 1);
        while follow().1 != "HTTP/1.1 200" {
            tokio::task::yield_now().await;
        }
        // Those that still don't read are cut when the server ends: see `served_with_events`.
        std::mem::forget(followers);
    });
}

fn mhctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mhctl")).args(arguments).output().unwrap()
}

#[test]
fn mhctl_says_in_one_line_what_is_wrong() {
    for (arguments, code, word) in [
        (&["--socket", "/nonexistent/mhd.sock", "status"][..], 1, "/nonexistent/mhd.sock"),
        (&["weights", "isp1=x"], 1, "isp1"),
        (&["weights", "=3"], 1, "=3"),
        (&["weights", "isp1=1", "isp1=2"], 1, "isp1"),
        (&["flows", "--src", "nowhere"], 1, "--src"),
        (&["check", "/nonexistent/mh.toml"], 1, "/nonexistent/mh.toml"),
        (&["sets", "--contains", "nowhere"], 1, "nowhere"),
        (&["explain", "tcp", "192.168.1.10:x", "192.0.2.10:443"], 1, "192.168.1.10:x"),
        (&["explain", "tcp", "192.168.1.10", "192.0.2.10:65536"], 1, "192.0.2.10:65536"),
    ] {
        let output = mhctl(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
    }
    assert_eq!(mhctl(&["sideways"]).status.code(), Some(2));
}

#[test]
fn mhctl_prints_tables_and_json() {
    served(async |path| {
        let socket = path.to_str().unwrap().to_owned();
        let run = move |arguments: &'static [&'static str]| {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || {
                let output = mhctl(&[&["--socket", &socket], arguments].concat());
                assert!(output.status.success(), "{output:?}");
                String::from_utf8(output.stdout).unwrap()
            })
        };
        let table = run(&["weights"]).await.unwrap();
        assert_eq!(
            table,
            "UPLINK  CONFIGURED  WEIGHT  EFFECTIVE    SHARE\nisp1             2       3          3  100.0 %\n"
        );
        let json: serde_json::Value = serde_json::from_str(&run(&["weights", "--json"]).await.unwrap()).unwrap();
        assert_eq!(json[0]["weight"], 3);
        let table = run(&["rules"]).await.unwrap();
        assert_eq!(table.lines().nth(1), Some("   1  bank  uplink:isp1        5  dscp 46"), "{table}");
        let json: serde_json::Value = serde_json::from_str(&run(&["policies", "--json"]).await.unwrap()).unwrap();
        assert_eq!(json[0]["tiers"][0][0]["weight"], 2);
        assert_eq!(json[0]["tiers"][0][1]["weight"], "capacity");
        let sets = run(&["sets", "--contains", "203.0.113.7"]).await.unwrap();
        assert!(sets.contains("203.0.113.7/32"), "{sets}");
        let text = run(&["explain", "udp", "192.168.1.10:7", "192.0.2.10:53"]).await.unwrap();
        assert!(text.starts_with("verdict   new\n") && text.ends_with("\n 1. 192.0.2.10:Some(53)\n"), "{text}");
        assert_eq!(run(&["events"]).await.unwrap(), "TIME  UPLINK  STATE  REASON\n");
        assert_eq!(run(&["events", "--json"]).await.unwrap(), "[]\n");
        assert_eq!(run(&["flows", "count", "--src", "192.168.1.0/24"]).await.unwrap(), "17\n");
    });
}
