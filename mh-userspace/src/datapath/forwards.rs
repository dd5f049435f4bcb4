//! Port forwards: bindings that the controller makes (see [`mh_common::binding::STATIC`]).
//!
//! The outside end is the forward; the inside end makes what the inside host sends by this uplink leave with the forwarded port
//! (RFC 4787 REQ-1). If several outside ports lead to one inside port, the first has the inside end; when it goes, another has.

use mh_common::{
    address::Ipv4,
    binding::{End, Inside, Outside, STATIC},
    flow::Entry,
};

use super::{
    DatapathError,
    flows::{self, Binding, Filter, Flow},
    tables::Tables,
};
use crate::core::{ForwardedPort, InsidePort};

impl Tables {
    /// Forwards a port. A binding that has the port, or that the inside port has, gives way, with its flows.
    pub fn set_forward(&mut self, port: &ForwardedPort, to: &InsidePort) -> Result<(), DatapathError> {
        let (outside_end, inside_end) = (outside_end(port), inside_end(port, to));
        if let Ok(former) = self.by_outside4.get(&outside_end, 0)
            && former.in_use()
        {
            let end = End { address: former.address, port: former.port, ..outside_end };
            if end != inside_end || former.flags & u16::from(STATIC) == 0 {
                self.end_binding(&end, &outside_end)?;
            }
        }
        let inside = Inside::of(to.address.into(), to.port.to_be(), u16::from(STATIC));
        self.by_outside4.insert(outside_end, inside, 0).map_err(DatapathError::map("write a forward"))?;
        self.known.note(self.seed()?, &outside_end);
        if let Some((end, inside)) = self.embryo_of(&inside_end) {
            self.keep_binding(&end, &inside)?;
        }
        if let Ok(former) = self.by_inside4.get(&inside_end, 0) {
            if former.flags & STATIC != 0 {
                return Ok(());
            }
            let end = End { address: former.address, port: former.port, ..inside_end };
            self.end_binding(&inside_end, &end)?;
        }
        let now = flows::now();
        let outside = Outside::to(&outside_end, STATIC, now, now);
        self.enter(inside_end, outside)
    }

    /// Forwards a port no more. Flows that exist go on, and the port rests before anybody else inside gets it (RFC 6888 REQ-8).
    pub fn remove_forward(&mut self, port: &ForwardedPort) -> Result<(), DatapathError> {
        let outside_end = outside_end(port);
        let Ok(inside) = self.by_outside4.get(&outside_end, 0) else { return Ok(()) };
        if inside.flags & u16::from(STATIC) == 0 {
            return Ok(());
        }
        let resting = Inside { flags: 0, released: flows::now().max(1), ..inside };
        self.by_outside4.insert(outside_end, resting, 0).map_err(DatapathError::map("let a port rest"))?;
        let inside_end = inside.end(&outside_end);
        match self.by_inside4.get(&inside_end, 0) {
            Ok(o) if o.flags & STATIC != 0 && o.is_to(&outside_end) => {
                self.by_inside4.forget(&inside_end)?;
            }
            _ => return Ok(()),
        }
        match self.further_forwards()?.into_iter().find(|(end, _)| *end == inside_end) {
            Some((_, heir)) => self.enter(inside_end, heir),
            None => Ok(()),
        }
    }

    /// Enters a forward by its inside end.
    fn enter(&mut self, inside: End<Ipv4>, outside: Outside<Ipv4>) -> Result<(), DatapathError> {
        self.by_inside4.insert(inside, outside, 0).map_err(DatapathError::map("write a forward"))?;
        self.known.note(self.seed()?, &inside);
        Ok(())
    }

    /// The forwards whose inside port has another outside end, or none, as bindings.
    pub fn further_forwards(&self) -> Result<Vec<Binding>, DatapathError> {
        let mut further = Vec::new();
        let now = flows::now();
        self.by_outside4.walk(|end, inside: Inside<_>| {
            if inside.flags & u16::from(STATIC) == 0 {
                return;
            }
            let inside_end = inside.end(&end);
            if !self.by_inside4.get(&inside_end, 0).is_ok_and(|o| o.is_to(&end)) {
                further.push((inside_end, Outside::to(&end, STATIC, now, now)));
            }
        })?;
        Ok(further)
    }

    /// The ports that are forwarded now.
    pub fn forwards(&self) -> Result<Vec<ForwardedPort>, DatapathError> {
        let mut forwards = Vec::new();
        self.by_outside4.walk(|end, inside: Inside<_>| {
            if inside.flags & u16::from(STATIC) != 0 {
                forwards.push(ForwardedPort {
                    uplink: end.uplink,
                    protocol: end.protocol,
                    address: end.address.into(),
                    port: u16::from_be(end.port),
                });
            }
        })?;
        Ok(forwards)
    }

    /// Removes a binding at once, with the flows that use it.
    fn end_binding(&mut self, inside: &End<Ipv4>, outside: &End<Ipv4>) -> Result<(), DatapathError> {
        let mut found: Vec<Flow> = Vec::new();
        let filter = Filter { uplink: Some(inside.uplink), protocol: Some(inside.protocol), ..Filter::default() };
        self.each_flow(&filter, |flow| {
            let Entry { src, sport, .. } = flow.forward;
            if (src, sport) == (outside.address, outside.port) {
                found.push(flow);
            }
            true
        })?;
        found.iter().try_for_each(|flow| self.remove_flow(flow))?;
        self.void_copies()?;
        self.by_inside4.forget(inside)?;
        self.by_outside4.forget(outside)
    }
}

fn outside_end(port: &ForwardedPort) -> End<Ipv4> {
    End { address: port.address.into(), port: port.port.to_be(), protocol: port.protocol, uplink: port.uplink }
}

fn inside_end(port: &ForwardedPort, to: &InsidePort) -> End<Ipv4> {
    End { address: to.address.into(), port: to.port.to_be(), protocol: port.protocol, uplink: port.uplink }
}
