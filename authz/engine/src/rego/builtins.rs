//! The built-ins that a tier may call. A sidecar may call those whose cost and output their arguments bound, and that
//! answer as OPA's; the check tier all that the interpreter has, and ours.

use regorus::unstable::{Expr, ExprRef, BUILTINS};

use super::extensions;
use super::syntax::string;
use crate::document::Tier;

/// Built-ins that any policy may call.
const ALLOWED: &[&str] = &[
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "base64url.decode",
    "base64url.encode",
    "base64url.encode_no_pad",
    "bits.and",
    "bits.negate",
    "bits.or",
    "bits.xor",
    "ceil",
    "contains",
    "count",
    "endswith",
    "floor",
    "hex.decode",
    "hex.encode",
    "indexof",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "lower",
    "max",
    "min",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.union",
    "print",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "substring",
    "sum",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "upper",
    "urlquery.decode",
    "urlquery.encode",
];

/// OPA's built-ins that the interpreter may lack, so that calling one is told from calling nothing.
const OPA_ONLY: &[&str] = &[
    "crypto.hmac.sha256",
    "crypto.md5",
    "crypto.sha1",
    "crypto.sha256",
    "crypto.x509.parse_certificates",
    "glob.match",
    "glob.quote_meta",
    "graph.reachable",
    "graph.reachable_paths",
    "http.send",
    "io.jwt.decode",
    "io.jwt.decode_verify",
    "io.jwt.encode_sign",
    "io.jwt.verify_es256",
    "io.jwt.verify_hs256",
    "io.jwt.verify_rs256",
    "json.match_schema",
    "json.patch",
    "net.cidr_contains",
    "net.cidr_contains_matches",
    "net.cidr_expand",
    "net.cidr_intersects",
    "net.cidr_merge",
    "net.lookup_ip_addr",
    "opa.runtime",
    "rego.metadata.chain",
    "rego.metadata.rule",
    "rego.parse_module",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.format",
    "time.now_ns",
    "time.parse_duration_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "uuid.parse",
    "uuid.rfc4122",
    "walk",
    "yaml.marshal",
    "yaml.unmarshal",
];

/// Why a call is refused.
pub(super) enum Refusal {
    /// OPA has it, the tier has not.
    OutsideTier,
    /// Nobody has it; perhaps this was meant.
    Unknown(Option<&'static str>),
    /// Allowed with other arguments only.
    Arguments(&'static str),
}

/// Whether `tier` admits a call of the built-in `name` with `arguments`.
pub(super) fn admit(tier: Tier, name: &str, arguments: &[ExprRef]) -> Result<(), Refusal> {
    match tier {
        Tier::Sidecar => admit_in_sidecar(name, arguments),
        Tier::Check if is_there(name) => Ok(()),
        Tier::Check => Err(missing(name)),
    }
}

fn is_there(name: &str) -> bool {
    BUILTINS.contains_key(name) || extensions::find(Tier::Check, name).is_some() || name == "print"
}

/// Why there is nothing called `name`, or nothing that the tier may call.
fn missing(name: &str) -> Refusal {
    if is_there(name) || OPA_ONLY.contains(&name) {
        Refusal::OutsideTier
    } else {
        Refusal::Unknown(nearest(name))
    }
}

fn admit_in_sidecar(name: &str, arguments: &[ExprRef]) -> Result<(), Refusal> {
    let literal = |at: usize| arguments.get(at).and_then(|argument| string(argument.as_ref() as &Expr));
    match name {
        "concat" => literal(0).map(drop).ok_or(Refusal::Arguments("its delimiter must be a literal")),
        "sprintf" => match literal(0) {
            Some(format) if has_plain_verbs(&format) => Ok(()),
            _ => Err(Refusal::Arguments("its format must be a literal with the verbs %s, %d, %v and %% only")),
        },
        "regex.match" => match literal(0) {
            Some(pattern) if reads_alike_everywhere(&pattern) => Ok(()),
            _ => Err(Refusal::Arguments(
                r"its pattern must be a literal without flags `(?…)` and without classes such as \d, \w, \s, \b or \p",
            )),
        },
        _ if ALLOWED.contains(&name) => Ok(()),
        _ => Err(missing(name)),
    }
}

/// `%s`, `%d`, `%v` and `%%`: no widths, which would let a short format write much.
pub(super) fn has_plain_verbs(format: &str) -> bool {
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character == '%' && !matches!(rest.next(), Some('s' | 'd' | 'v' | '%')) {
            return false;
        }
    }
    true
}

/// Whether Go's RE2 and Rust's `regex` read `pattern` as the same: they differ in what `\d` and its like hold
/// (ASCII there, Unicode here) and in flags.
fn reads_alike_everywhere(pattern: &str) -> bool {
    let mut rest = pattern.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\\' if rest.next().is_none_or(|escaped| escaped.is_alphanumeric()) => return false,
            '(' if rest.peek() == Some(&'?') => return false,
            '[' if matches!(rest.peek(), Some('[' | '&' | '~' | '-')) => return false,
            '&' | '~' if rest.peek() == Some(&character) => return false,
            _ => {}
        }
    }
    true
}

/// The allowed built-in that differs from `name` in the fewest letters, if few enough.
fn nearest(name: &str) -> Option<&'static str> {
    let distance = |known: &&&str| edit_distance(name, known);
    let best = ALLOWED.iter().min_by_key(distance)?;
    (edit_distance(name, best) <= 2).then_some(best)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_with_widths_are_refused() {
        for (format, plain) in [("%s of %d: %v %%", true), ("%200000000d", false), ("%", false), ("%-5s", false)] {
            assert_eq!(has_plain_verbs(format), plain, "{format}");
        }
    }

    #[test]
    fn patterns_that_differ_between_engines_are_refused() {
        let table =
            [("^/items/[0-9]+$", true), (r"\.txt$", true), (r"\d+", false), ("(?i)a", false), ("[[:alpha:]]", false)];
        for (pattern, alike) in table {
            assert_eq!(reads_alike_everywhere(pattern), alike, "{pattern}");
        }
    }

    #[test]
    fn a_slip_is_named() {
        assert!(matches!(admit(Tier::Sidecar, "startwith", &[]), Err(Refusal::Unknown(Some("startswith")))));
        assert!(matches!(admit(Tier::Sidecar, "frobnicate", &[]), Err(Refusal::Unknown(None))));
        assert!(matches!(admit(Tier::Sidecar, "http.send", &[]), Err(Refusal::OutsideTier)));
    }
}
