//! `net.*`: addresses and networks. Names are not resolved.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use regorus::Value;

use super::{Answer, Arguments, BuiltIn, Fault};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn {
        name: "net.cidr_contains",
        arity: 2,
        call: |given| Ok(contains(given.string(0)?, given.string(1)?)?.into()),
    },
    BuiltIn { name: "net.cidr_contains_matches", arity: 2, call: contains_matches },
    BuiltIn { name: "net.cidr_expand", arity: 1, call: expand },
    BuiltIn { name: "net.cidr_intersects", arity: 2, call: intersects },
    BuiltIn {
        name: "net.cidr_is_valid",
        arity: 1,
        call: |given| Ok(given.string(0).is_ok_and(|text| network(text).is_ok()).into()),
    },
    BuiltIn { name: "net.cidr_merge", arity: 1, call: merge },
];

/// Most addresses that a network is expanded to.
const MAX_ADDRESSES: usize = 1 << 16;

fn network(text: &str) -> Result<IpNet, Fault> {
    let network: IpNet = text.parse().map_err(|_| format!("invalid CIDR address: {text}"))?;
    Ok(network.trunc())
}

fn contains(outer: &str, inner: &str) -> Result<bool, Fault> {
    let outer = network(outer)?;
    if let Ok(address) = inner.parse::<IpAddr>() {
        return Ok(outer.contains(&address));
    }
    let wrong = format!("not a valid textual representation of an IP address or CIDR: {inner}");
    Ok(outer.contains(&network(inner).map_err(|_| wrong)?))
}

fn intersects(given: &Arguments<'_>) -> Answer {
    let (left, right) = (network(given.string(0)?)?, network(given.string(1)?)?);
    Ok((left.contains(&right.network()) || right.contains(&left.network())).into())
}

fn contains_matches(given: &Arguments<'_>) -> Answer {
    let (outer, inner) = (entries(given, 0)?, entries(given, 1)?);
    let mut matches = Value::new_set();
    for (outer, outer_key) in &outer {
        for (inner, inner_key) in &inner {
            if contains(outer, inner)? {
                matches.as_set_mut()?.insert(vec![outer_key.clone(), inner_key.clone()].into());
            }
        }
    }
    Ok(matches)
}

/// The networks of an argument, each with what it is reported by.
fn entries(given: &Arguments<'_>, at: usize) -> Result<Vec<(String, Value)>, Fault> {
    let text = |value: &Value| {
        let first = value.as_array().ok().and_then(|items| items.first());
        let text = first.unwrap_or(value).as_string().map(ToString::to_string);
        text.map_err(|_| Fault::from(format!("operand {}: element must be string or non-empty array", at + 1)))
    };
    match given.value(at) {
        value @ Value::String(_) => Ok(vec![(text(value)?, value.clone())]),
        Value::Array(items) => items.iter().enumerate().map(|(index, item)| Ok((text(item)?, index.into()))).collect(),
        Value::Set(items) => items.iter().map(|item| Ok((text(item)?, item.clone()))).collect(),
        Value::Object(members) => members.iter().map(|(key, value)| Ok((text(value)?, key.clone()))).collect(),
        _ => Err(Fault::Type(at + 1, "one of {string, array, set, object}")),
    }
}

fn expand(given: &Arguments<'_>) -> Answer {
    let network = network(given.string(0)?)?;
    let host_bits = network.max_prefix_len() - network.prefix_len();
    if host_bits > 16 {
        return Err(Fault::Limit(format!("{network} has more than {MAX_ADDRESSES} addresses")));
    }
    let mut addresses = Value::new_set();
    for subnet in network.subnets(network.max_prefix_len())? {
        addresses.as_set_mut()?.insert(subnet.addr().to_string().into());
    }
    Ok(addresses)
}

fn merge(given: &Arguments<'_>) -> Answer {
    let elements: Vec<&Value> = match given.value(0) {
        Value::Array(items) => items.iter().collect(),
        Value::Set(items) => items.iter().collect(),
        _ => return Err(Fault::Type(1, "one of {array, set}")),
    };
    let networks = elements.into_iter().map(mergeable).collect::<Result<Vec<_>, _>>()?;
    let mut merged = Value::new_set();
    for network in IpNet::aggregate(&networks) {
        merged.as_set_mut()?.insert(network.to_string().into());
    }
    Ok(merged)
}

/// A network, or an IPv4 address, which stands for the network of its class as in Go's `DefaultMask`.
fn mergeable(element: &Value) -> Result<IpNet, Fault> {
    let text = element.as_string().map_err(|_| Fault::from("element must be string"))?;
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => Ok(Ipv4Net::new(address, class_prefix(address))?.trunc().into()),
        Ok(IpAddr::V6(_)) => Err("IPv6 invalid: needs prefix length".into()),
        Err(_) => network(text),
    }
}

fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}
