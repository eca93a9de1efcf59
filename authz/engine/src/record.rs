//! Audit records: what is written of a decision, in a form that is read back to the byte and chained.
//!
//! A frame in a spool is `length (u32) | body (length bytes) | link (32 bytes) | mac (16 bytes)`, all integers
//! little-endian. A body is `schema (u16) | MAC algorithm (u8) | kind (u8) | sequence (u64) | time (u64, ns since 1970)`,
//! then fields of `tag (u8) | state (u8) | length (u32) | value`. The link of a record is SHA-256 over the link before it
//! and the body, so that no record can be changed, dropped or moved without every later link changing; anybody can check
//! it. The code is over the link, with a key of this record only ([`crate::ratchet`]).

use crate::ratchet::{Key, MAC_BYTES};
use crate::sha256::{sha256, HASH_BYTES as LINK_BYTES};
use crate::Hash;

/// Schema of the records written here.
pub const SCHEMA: u16 = 1;

/// Algorithm 1: an unkeyed SHA-256 chain, whose frames end with their link. Read, no longer written.
const MAC_NONE: u8 = 1;
/// Algorithm 2: the same chain, and a code with a key that is hashed forward.
const MAC_RATCHET: u8 = 2;

/// Longest body that is written and read, in bytes. Envoy bounds headers to far less.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest frame.
pub(crate) const MAX_FRAME_BYTES: usize = LENGTH_BYTES + MAX_BODY_BYTES + LINK_BYTES + MAC_BYTES;

pub(crate) const BODY_HEADER_BYTES: usize = 20;
const LENGTH_BYTES: usize = 4;

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A spool begins.
    Genesis = 1,
    /// A decision about an inbound request, written before the request goes on.
    Decision = 2,
    /// How an inbound request ended.
    End = 3,
    /// A connection that was refused before any request.
    Refusal = 4,
    /// How an outbound request ended: the other witness of a call.
    Outbound = 5,
    /// An act of the control plane.
    Act = 6,
    /// A process still writes, and where its spools stand.
    Heartbeat = 7,
    /// A spool is closed: nothing follows.
    Close = 8,
    /// Requests that were allowed and have no records of their own, counted.
    Summary = 9,
    /// Requests that were let through without a record while there was no room, counted.
    Dropped = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Genesis,
        Self::Decision,
        Self::End,
        Self::Refusal,
        Self::Outbound,
        Self::Act,
        Self::Heartbeat,
        Self::Close,
        Self::Summary,
        Self::Dropped,
    ];

    /// The name that the store uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Genesis => "genesis",
            Self::Decision => "decision",
            Self::End => "end",
            Self::Refusal => "refusal",
            Self::Outbound => "outbound",
            Self::Act => "act",
            Self::Heartbeat => "heartbeat",
            Self::Close => "close",
            Self::Summary => "summary",
            Self::Dropped => "dropped",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How a field's value is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Bytes that are text to whoever sent them; not always valid UTF-8.
    Text,
    /// Bytes.
    Bytes,
    /// An unsigned integer of 8 bytes.
    Number,
}

macro_rules! fields {
    ($($name:ident = $tag:literal $type:ident $text:literal),* $(,)?) => {
        /// A field of a record. Tags are never used again for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)] // the names below say what there is to say; docs/audit.md tells them all
        pub enum Field { $($name = $tag,)* }

        impl Field {
            /// Every field.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name that the store uses.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// How its value is read.
            pub fn value_type(self) -> Type {
                match self { $(Self::$name => Type::$type,)* }
            }
        }
    };
}

fields! {
    SpoolId = 1 Bytes "spool_id",
    Worker = 2 Number "worker",
    ProcessId = 3 Number "process_id",
    Start = 4 Bytes "start",
    StartIndex = 5 Number "start_index",
    Heads = 6 Bytes "heads",
    Count = 7 Number "count",
    SinceNs = 8 Number "since_ns",
    UntilNs = 9 Number "until_ns",
    SourcePrincipal = 10 Text "source_principal",
    SourceAddress = 11 Text "source_address",
    SourceSerial = 12 Text "source_serial",
    DestinationPrincipal = 13 Text "destination_principal",
    DestinationPort = 14 Number "destination_port",
    TokenIssuer = 15 Text "token_issuer",
    TokenSubject = 16 Text "token_subject",
    ConnectionSecurityPolicy = 17 Text "connection_security_policy",
    Method = 20 Text "method",
    Host = 21 Text "host",
    Path = 22 Text "path",
    RequestId = 23 Text "request_id",
    TraceParent = 24 Text "traceparent",
    Effect = 30 Text "effect",
    Status = 31 Number "status",
    Policy = 32 Text "policy",
    Rule = 33 Number "rule",
    Reason = 34 Text "reason",
    DecidedBy = 35 Text "decided_by",
    Detail = 36 Text "detail",
    Program = 37 Bytes "program",
    Keys = 38 Bytes "keys",
    Revocations = 39 Bytes "revocations",
    DecisionSequence = 40 Number "decision_sequence",
    Flags = 41 Number "flags",
    EndDetails = 42 Text "end_details",
    BytesReceived = 43 Number "bytes_received",
    BytesSent = 44 Number "bytes_sent",
    DurationNs = 45 Number "duration_ns",
    Actor = 50 Text "actor",
    Action = 51 Text "action",
    Object = 52 Text "object",
    DryRunDeny = 60 Text "dry_run_deny",
    DryRunDenyPolicy = 61 Text "dry_run_deny_policy",
    DryRunDenyRule = 62 Number "dry_run_deny_rule",
    DryRunAllow = 63 Text "dry_run_allow",
    DryRunAllowPolicy = 64 Text "dry_run_allow_policy",
    DryRunAllowRule = 65 Number "dry_run_allow_rule",
    AuditRules = 66 Text "audit_rules",
    Query = 70 Text "query",
    RequestHeaders = 71 Text "request_headers",
    Claims = 72 Text "claims",
    Prints = 73 Text "prints",
    Annotations = 74 Text "annotations",
}

impl Field {
    fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| *field as u8 == tag)
    }

    /// The field of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }
}

/// Whether a field's value is there, and if not, why. A field that is absent is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The value is written.
    Present = 1,
    /// There is a value, and it is left out.
    Redacted = 2,
    /// A keyed hash stands for the value.
    Hashed = 3,
}

impl State {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Present, Self::Redacted, Self::Hashed].into_iter().find(|state| *state as u8 == byte)
    }
}

/// A field, its state, and its value.
pub type Stated<'a> = (Field, State, &'a [u8]);

/// Writes the fields of one record.
pub struct Fields<'a>(pub(crate) &'a mut Vec<u8>);

impl Fields<'_> {
    /// Writes text or bytes. Kept out of line: a record has two dozen fields, and code that is fetched anew for each
    /// request costs more than a call.
    #[inline(never)]
    pub fn bytes(&mut self, field: Field, value: &[u8]) {
        self.write(field, State::Present, value);
    }

    #[inline(always)] // into `bytes`, as it always was
    fn write(&mut self, field: Field, state: State, value: &[u8]) {
        let [a, b, c, d] = (value.len() as u32).to_le_bytes();
        let head = [field as u8, state as u8, a, b, c, d];
        let written = self.0.len();
        self.0.reserve(head.len() + value.len());
        // Two appends would each look again whether there is room, two dozen times a request.
        // SAFETY: there is room for both, and `value` is not of the vector, which nobody else may read meanwhile.
        unsafe {
            let end = self.0.as_mut_ptr().add(written);
            end.copy_from_nonoverlapping(head.as_ptr(), head.len());
            end.add(head.len()).copy_from_nonoverlapping(value.as_ptr(), value.len());
            self.0.set_len(written + head.len() + value.len());
        }
    }

    /// Writes that there is a value, and not which.
    pub fn redacted(&mut self, field: Field) {
        self.write(field, State::Redacted, b"");
    }

    /// Writes a keyed hash that stands for the value.
    pub fn hashed(&mut self, field: Field, hash: &[u8]) {
        self.write(field, State::Hashed, hash);
    }

    /// Writes text or bytes, if there are any.
    pub fn optional(&mut self, field: Field, value: Option<impl AsRef<[u8]>>) {
        if let Some(value) = value {
            self.bytes(field, value.as_ref());
        }
    }

    /// Writes a number.
    pub fn number(&mut self, field: Field, value: u64) {
        self.bytes(field, &value.to_le_bytes());
    }

    /// Writes what [`encode`] encoded.
    pub fn encoded(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }
}

/// Encodes fields once: those that many records will have, or that are to be written later.
pub fn encode(fill: impl FnOnce(&mut Fields<'_>)) -> Box<[u8]> {
    let mut fields = Vec::new();
    fill(&mut Fields(&mut fields));
    fields.into()
}

/// Reads the fields that say something, in the order written.
pub(crate) fn read_fields(fields: &[u8]) -> Result<Vec<(Field, &[u8])>, RecordError> {
    let said = |(field, state, value)| (state != State::Redacted).then_some((field, value));
    Ok(read_states(fields)?.into_iter().filter_map(said).collect())
}

/// Reads fields, in the order written. Those of tags and states that this schema lacks are passed over.
fn read_states(mut rest: &[u8]) -> Result<Vec<Stated<'_>>, RecordError> {
    let malformed = |reason| RecordError::Malformed { offset: 0, reason };
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(6).ok_or(malformed("a field is cut short"))?;
        let length = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (value, tail) = tail.split_at_checked(length).ok_or(malformed("a value is cut short"))?;
        if let (Some(field), Some(state)) = (Field::from_tag(head[0]), State::from_byte(head[1])) {
            if field.value_type() == Type::Number && (state != State::Present || value.len() != 8) {
                return Err(malformed("a number does not have 8 bytes"));
            }
            fields.push((field, state, value));
        }
        rest = tail;
    }
    Ok(fields)
}

/// The link before the first record of a chain.
pub fn first_link() -> [u8; LINK_BYTES] {
    Hash::of(b"peltast audit chain 1").0
}

/// The link of a record with `body`, after one with the link `previous`.
pub fn next_link(previous: &[u8; LINK_BYTES], body: &[u8]) -> [u8; LINK_BYTES] {
    sha256(previous, body)
}

/// Where a chain stands: after its last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Sequence of the last record; 0 before the first.
    pub sequence: u64,
    /// Link of the last record.
    pub link: [u8; LINK_BYTES],
}

impl Default for Position {
    fn default() -> Self {
        Self { sequence: 0, link: first_link() }
    }
}

impl Position {
    /// Writes the frame of the next record, whose key is `key`, to `out`, which is cleared first; gives the position
    /// after it.
    pub fn write(
        &self,
        key: &Key,
        out: &mut Vec<u8>,
        kind: Kind,
        time_ns: u64,
        fill: impl FnOnce(&mut Fields<'_>),
    ) -> Self {
        self.begin(out, kind, time_ns);
        fill(&mut Fields(out));
        self.seal(key, out)
    }

    /// Writes what comes before the fields of the next record to `out`, which is cleared first.
    pub(crate) fn begin(&self, out: &mut Vec<u8>, kind: Kind, time_ns: u64) {
        out.clear();
        out.extend_from_slice(&[0; LENGTH_BYTES]);
        out.extend_from_slice(&SCHEMA.to_le_bytes());
        out.extend_from_slice(&[MAC_RATCHET, kind as u8]);
        out.extend_from_slice(&(self.sequence + 1).to_le_bytes());
        out.extend_from_slice(&time_ns.to_le_bytes());
    }

    /// Writes what comes after the fields.
    pub(crate) fn seal(&self, key: &Key, out: &mut Vec<u8>) -> Self {
        let length = (out.len() - LENGTH_BYTES) as u32;
        out[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        let link = next_link(&self.link, &out[LENGTH_BYTES..]);
        out.extend_from_slice(&link);
        out.extend_from_slice(&key.mac(&link));
        Self { sequence: self.sequence + 1, link }
    }
}

impl Position {
    /// Goes past the first record of `bytes` and gives it with the length of its frame; none where it is not complete.
    ///
    /// # Errors
    /// It is none, or not the next one of the chain. Then this stays where it is.
    pub fn follow<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Record<'a>, usize)>, RecordError> {
        let Some((record, length)) = read_frame(bytes)? else { return Ok(None) };
        let (expected, found) = (self.sequence + 1, record.sequence());
        if found != expected {
            return Err(RecordError::Sequence { expected, found });
        }
        if next_link(&self.link, record.body) != record.link {
            return Err(RecordError::Link { sequence: found });
        }
        *self = Self { sequence: found, link: record.link };
        Ok(Some((record, length)))
    }
}

/// Why bytes are not the records of a chain.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a record.
    #[error("byte {offset}: {reason}")]
    Malformed {
        /// Where the frame begins in the bytes given.
        offset: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record's link does not follow from the one before it.
    #[error("record {sequence}: its link does not follow from the record before it")]
    Link {
        /// The record.
        sequence: u64,
    },
    /// A record's code is not that of its key: another than the writer made it.
    #[error("record {sequence}: its code is not by its spool's key")]
    Mac {
        /// The record.
        sequence: u64,
    },
    /// Records are missing or come twice.
    #[error("record {found} follows where record {expected} is due")]
    Sequence {
        /// The record that is due.
        expected: u64,
        /// The record that is there.
        found: u64,
    },
}

/// One record as it stands in its frame.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The body, to the byte.
    pub body: &'a [u8],
    /// The link after it.
    pub link: [u8; LINK_BYTES],
    /// Its code, where its algorithm has one.
    pub mac: Option<[u8; MAC_BYTES]>,
}

impl<'a> Record<'a> {
    /// Schema that the record was written by.
    pub fn schema(&self) -> u16 {
        u16::from_le_bytes([self.body[0], self.body[1]])
    }

    /// What the record tells of; none where a later schema made it.
    pub fn kind(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == self.body[3])
    }

    /// Place in the chain, from 1.
    pub fn sequence(&self) -> u64 {
        number(&self.body[4..12])
    }

    /// Nanoseconds since 1970, by the writer's clock.
    pub fn time_ns(&self) -> u64 {
        number(&self.body[12..20])
    }

    /// The fields that say something, in the order written; the hash of one that is hashed. Those of tags and states
    /// that this schema lacks are passed over.
    ///
    /// # Errors
    /// A field that reaches beyond the body.
    pub fn fields(&self) -> Result<Vec<(Field, &'a [u8])>, RecordError> {
        read_fields(&self.body[BODY_HEADER_BYTES..])
    }

    /// The fields, each with its state; of one that is redacted the value is empty.
    ///
    /// # Errors
    /// As [`Self::fields`].
    pub fn states(&self) -> Result<Vec<Stated<'a>>, RecordError> {
        read_states(&self.body[BODY_HEADER_BYTES..])
    }
}

/// A number as [`Fields::number`] wrote it.
pub fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// The first record of `bytes` and the length of its frame; none where the frame is not complete yet.
///
/// # Errors
/// A frame that can never become one.
pub fn read_frame(bytes: &[u8]) -> Result<Option<(Record<'_>, usize)>, RecordError> {
    let Some((length, rest)) = bytes.split_at_checked(LENGTH_BYTES) else { return Ok(None) };
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if !(BODY_HEADER_BYTES..=MAX_BODY_BYTES).contains(&length) {
        return Err(RecordError::Malformed { offset: 0, reason: "a record's length is out of bounds" });
    }
    let Some((body, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let Some((link, rest)) = rest.split_first_chunk() else { return Ok(None) };
    let unkeyed = LENGTH_BYTES + length + LINK_BYTES;
    match body[2] {
        MAC_NONE => Ok(Some((Record { body, link: *link, mac: None }, unkeyed))),
        MAC_RATCHET => {
            let Some(mac) = rest.first_chunk() else { return Ok(None) };
            Ok(Some((Record { body, link: *link, mac: Some(*mac) }, unkeyed + MAC_BYTES)))
        }
        _ => Err(RecordError::Malformed { offset: 0, reason: "a record's MAC algorithm is not known" }),
    }
}

/// Reads all records of `bytes`, which continue a chain from `position`.
///
/// # Errors
/// See [`RecordError`]. An incomplete frame at the end is an error too: whoever sends records sends whole ones.
pub fn verify(mut position: Position, bytes: &[u8]) -> Result<(Vec<Record<'_>>, Position), RecordError> {
    let mut records = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        let incomplete = RecordError::Malformed { offset, reason: "a record is cut short" };
        let (record, length) = position.follow(&bytes[offset..])?.ok_or(incomplete)?;
        records.push(record);
        offset += length;
    }
    Ok((records, position))
}

/// Checks the codes of `records`, the first of which has the key `key`; that is then the key of the record after them.
///
/// # Errors
/// A record has none, or another key's.
pub fn authenticate(key: &mut Key, records: &[Record<'_>]) -> Result<(), RecordError> {
    for record in records {
        if record.mac != Some(key.mac(&record.link)) {
            return Err(RecordError::Mac { sequence: record.sequence() });
        }
        key.advance();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratchet::Root;
    use proptest::prelude::*;

    fn chain(paths: &[&[u8]]) -> (Vec<Vec<u8>>, Position) {
        let (mut position, mut key) = (Position::default(), first_key());
        let mut frames = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let mut frame = Vec::new();
            position = position.write(&key, &mut frame, Kind::Decision, 1000 + index as u64, |fields| {
                fields.bytes(Field::Path, path);
                fields.number(Field::Status, 200);
            });
            key.advance();
            frames.push(frame);
        }
        (frames, position)
    }

    fn first_key() -> Key {
        Root::new([7; 32]).next_spool()
    }

    fn key_of(sequence: u64) -> Key {
        let mut key = first_key();
        (1..sequence).for_each(|_| key.advance());
        key
    }

    fn check(bytes: &[u8]) -> Result<(), RecordError> {
        let (records, _) = verify(Position::default(), bytes)?;
        authenticate(&mut first_key(), &records)
    }

    #[test]
    fn a_record_without_a_code_is_read_but_is_nobodys() {
        let (frames, _) = chain(&[b"/a"]);
        let mut body = frames[0][4..frames[0].len() - LINK_BYTES - MAC_BYTES].to_vec();
        body[2] = MAC_NONE;
        let link = next_link(&first_link(), &body);
        let frame = [&(body.len() as u32).to_le_bytes()[..], &body, &link].concat();
        let (records, _) = verify(Position::default(), &frame).expect("a sound chain");
        assert_eq!(records[0].mac, None);
        assert_eq!(check(&frame), Err(RecordError::Mac { sequence: 1 }));
        body[2] = 3;
        let frame = [&(body.len() as u32).to_le_bytes()[..], &body, &link, &[0; 16]].concat();
        assert!(matches!(verify(Position::default(), &frame), Err(RecordError::Malformed { .. })));
    }

    #[test]
    fn what_is_written_is_read() {
        let (frames, end) = chain(&[b"/a", b"/\xff\0'; DROP TABLE records; --"]);
        let bytes = frames.concat();
        let (records, position) = verify(Position::default(), &bytes).expect("a sound chain");
        assert_eq!(position, end);
        assert_eq!((records[1].kind(), records[1].sequence(), records[1].time_ns()), (Some(Kind::Decision), 2, 1001));
        let fields = records[1].fields().expect("fields");
        assert_eq!(fields[0], (Field::Path, &b"/\xff\0'; DROP TABLE records; --"[..]));
        assert_eq!((fields[1].0, number(fields[1].1)), (Field::Status, 200));
    }

    #[test]
    fn what_is_left_out_or_hashed_says_so() {
        let mut frame = Vec::new();
        let key = Root::new([7; 32]).next_spool();
        Position::default().write(&key, &mut frame, Kind::Decision, 1, |fields| {
            fields.bytes(Field::Path, b"/a");
            fields.redacted(Field::Query);
            fields.hashed(Field::TokenSubject, b"00ff");
            fields.encoded(&[Field::Host as u8, 9, 1, 0, 0, 0, b'h']);
        });
        let (record, _) = read_frame(&frame).expect("a frame").expect("whole");
        let states = [
            (Field::Path, State::Present, &b"/a"[..]),
            (Field::Query, State::Redacted, b""),
            (Field::TokenSubject, State::Hashed, b"00ff"),
        ];
        assert_eq!(record.states().expect("fields"), states, "a state of a later schema is passed over");
        assert_eq!(
            record.fields().expect("fields"),
            [(Field::Path, &b"/a"[..]), (Field::TokenSubject, b"00ff")],
            "what is redacted says nothing"
        );
    }

    #[test]
    fn a_number_is_neither_redacted_nor_hashed() {
        for (state, length) in [(1, 7_u8), (2, 0), (3, 8)] {
            let field = [&[Field::Status as u8, state, length, 0, 0, 0][..], &vec![0; usize::from(length)]].concat();
            assert!(read_states(&field).is_err(), "{state} {length}");
        }
    }

    #[test]
    fn names_and_tags_are_unique() {
        for (index, field) in Field::ALL.iter().enumerate() {
            assert!(!Field::ALL[..index].iter().any(|other| other.name() == field.name()), "{}", field.name());
            assert_eq!(Field::from_tag(*field as u8), Some(*field));
            assert_eq!(Field::parse(field.name()), Some(*field));
        }
    }

    #[test]
    fn tampering_is_found() {
        let (frames, _) = chain(&[b"/a", b"/b", b"/c"]);
        let [a, b, c] = &frames[..] else { unreachable!() };
        let start = Position::default();
        let mut altered = [a.clone(), b.clone(), c.clone()].concat();
        altered[a.len() + 40] ^= 1;
        let table = [
            ("altered", altered, RecordError::Link { sequence: 2 }),
            ("dropped", [a.clone(), c.clone()].concat(), RecordError::Sequence { expected: 2, found: 3 }),
            ("moved", [b.clone(), a.clone()].concat(), RecordError::Sequence { expected: 1, found: 2 }),
            ("repeated", [a.clone(), a.clone()].concat(), RecordError::Sequence { expected: 2, found: 1 }),
        ];
        for (what, bytes, error) in table {
            assert_eq!(verify(start, &bytes).expect_err(what), error, "{what}");
        }
        assert!(verify(start, &a[..a.len() - 1]).is_err(), "cut short");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Ok((records, _)) = verify(Position::default(), &bytes) {
                records.iter().for_each(|record| drop(record.fields()));
            }
        }

        #[test]
        fn records_that_are_moved_left_out_or_cut_are_found(from in 0_usize..6, to in 0_usize..6, cut in 0_usize..40) {
            let (frames, _) = chain(&[b"/a", b"/b", b"/c", b"/d", b"/e", b"/f"]);
            prop_assert_eq!(check(&frames.concat()), Ok(()));
            let mut moved = frames.clone();
            let taken = moved.remove(from);
            let without = moved.concat();
            prop_assert_eq!(check(&without).is_ok(), from == 5, "only an end can be left out, which shows in the cursor");
            moved.insert(to, taken);
            prop_assert_eq!(check(&moved.concat()).is_ok(), from == to);
            let whole = frames.concat();
            prop_assert_eq!(check(&whole[..whole.len() - cut]).is_ok(), cut == 0);
        }

        #[test]
        fn a_key_makes_no_record_before_its_own(forged in 1_u64..6, stolen in 1_u64..7) {
            let (frames, _) = chain(&[b"/a", b"/b", b"/c", b"/d", b"/e", b"/f"]);
            let before = frames[..forged as usize - 1].concat();
            let (_, position) = verify(Position::default(), &before).expect("a chain");
            let (mut frame, mut key) = (Vec::new(), key_of(stolen));
            for _ in 0..6 {
                position.write(&key, &mut frame, Kind::Decision, 1, |fields| fields.bytes(Field::Path, b"/forged"));
                let sound = check(&[&before[..], &frame].concat());
                if stolen > forged {
                    prop_assert_eq!(sound, Err(RecordError::Mac { sequence: forged }));
                } else if sound.is_ok() {
                    return Ok(()); // a key at or before it does make it: that is what it is for
                }
                key.advance();
            }
            prop_assert!(stolen > forged);
        }

        #[test]
        fn any_single_change_is_found(at in 0_usize..1000, change in 1_u8..=255) {
            let (frames, _) = chain(&[b"/a", b"/b", b"/c"]);
            let mut bytes = frames.concat();
            let at = at % bytes.len();
            bytes[at] ^= change;
            prop_assert!(check(&bytes).is_err());
        }
    }
}
