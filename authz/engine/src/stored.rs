//! What a store holds, against the records in it: rows in order of their leaves, as PostgreSQL's binary COPY writes them.
//!
//! A [`Walk`] goes over all rows once. Of each it computes the link from the body, compares the columns with what the
//! body says, and gives the leaf's hash. It compares bytes and renders nothing: a column whose text needs rendering
//! (because the body's is not UTF-8, or in a state of its own) is only suspected, and looked at again by whoever writes
//! the columns (`audit/peltast/audit/columns.py`).

use ahash::AHashMap as HashMap;

use crate::ratchet::Key;
use crate::record::{self, Field, Record, Type};
use crate::tree::{self, Node};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// 2000-01-01, from which PostgreSQL counts, in microseconds since 1970.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Records that a key is taken past in one gap, each at the cost of a hash: more than spools hold.
const MAX_PASSED: u64 = 1 << 30;

/// Why bytes are not rows.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Not what COPY writes.
    #[error("these are not rows in PostgreSQL's binary COPY format")]
    Malformed,
    /// A column that a walk cannot do without.
    #[error("there is no column {0}")]
    Missing(&'static str),
}

/// What is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another record of the spool was due.
    Sequence {
        /// The record that was due.
        due: u64,
    },
    /// The link is not that of the body and the link before.
    Link,
    /// The code is not by the key of the spool's writer.
    Code,
    /// A column may not be as in the body.
    Columns,
}

/// A row with something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its place in the tree.
    pub leaf: i64,
    /// Its spool.
    pub spool: Vec<u8>,
    /// Its place in the spool.
    pub sequence: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// Number and hash of a leaf.
pub type Leaf = (i64, Node);

/// Where the chain of a spool stands.
type Place = record::Position;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Spool,
    Sequence,
    Leaf,
    Owner,
    Schema,
    Kind,
    Time,
    TimeNs,
    Body,
    Link,
    Field(Field),
    /// Compared by keys that the store does not have.
    Mac,
    /// One that the body of a record does not fill by itself.
    Other,
}

impl Column {
    fn named(name: &str) -> Self {
        match name {
            "spool" => Self::Spool,
            "sequence" => Self::Sequence,
            "leaf" => Self::Leaf,
            "owner" => Self::Owner,
            "schema" => Self::Schema,
            "kind" => Self::Kind,
            "time" => Self::Time,
            "time_ns" => Self::TimeNs,
            "body" => Self::Body,
            "link" => Self::Link,
            "mac" => Self::Mac,
            _ => Field::parse(name).map_or(Self::Other, Self::Field),
        }
    }
}

/// Columns that every row must have.
struct Places {
    spool: usize,
    sequence: usize,
    leaf: usize,
    owner: usize,
    body: usize,
    link: usize,
    mac: Option<usize>,
}

/// What the codes of a spool are compared by.
struct Writer {
    key: Key,
    /// The record whose key it is.
    sequence: u64,
}

impl Writer {
    /// Whether `mac` is the code of the record `sequence` with `link`; the key is then that of the next.
    fn wrote(&mut self, sequence: u64, link: &[u8; 32], mac: Option<&[u8]>) -> bool {
        if sequence < self.sequence || sequence - self.sequence > MAX_PASSED {
            return false;
        }
        (self.sequence..sequence).for_each(|_| self.key.advance());
        let expected = self.key.mac(link);
        self.key.advance();
        self.sequence = sequence + 1;
        mac == Some(&expected)
    }
}

/// A walk over all rows of a store.
pub struct Walk {
    columns: Vec<Column>,
    places: Places,
    spools: HashMap<Vec<u8>, Place>,
    owners: HashMap<Vec<u8>, Vec<u8>>,
    writers: HashMap<Vec<u8>, Writer>,
    /// Runs of records that are known not to be there, by spool and first sequence: where the chain then stands.
    missing: HashMap<(Vec<u8>, u64), Place>,
}

impl Walk {
    /// A walk over rows of these columns, in this order.
    ///
    /// # Errors
    /// A column is missing without which there is no telling a record's place.
    pub fn new(names: &[String]) -> Result<Self, CopyError> {
        let place = |name| names.iter().position(|each| each == name).ok_or(CopyError::Missing(name));
        let places = Places {
            spool: place("spool")?,
            sequence: place("sequence")?,
            leaf: place("leaf")?,
            owner: place("owner")?,
            body: place("body")?,
            link: place("link")?,
            mac: place("mac").ok(),
        };
        let columns = names.iter().map(|name| Column::named(name)).collect();
        let (spools, owners, writers, missing) = Default::default();
        Ok(Self { columns, places, spools, owners, writers, missing })
    }

    /// Says whose a spool is.
    pub fn own(&mut self, spool: Vec<u8>, owner: Vec<u8>) {
        self.owners.insert(spool, owner);
    }

    /// Gives the first key of a spool: from now on, codes of its records are compared.
    pub fn authenticate(&mut self, spool: Vec<u8>, key: Key) {
        self.writers.insert(spool, Writer { key, sequence: 1 });
    }

    /// Says that records of a spool are known not to be there, and which link the last of them has.
    pub fn miss(&mut self, spool: Vec<u8>, since: u64, until: u64, link: [u8; 32]) {
        self.missing.insert((spool, since), Place { sequence: until, link });
    }

    /// Goes over more rows; gives number and hash of each leaf, and what is wrong.
    ///
    /// # Errors
    /// Bytes that are no rows.
    pub fn rows(&mut self, copied: &[u8]) -> Result<(Vec<Leaf>, Vec<Suspect>), CopyError> {
        let mut rest = header(copied).ok_or(CopyError::Malformed)?;
        let mut cells = Vec::with_capacity(self.columns.len());
        let (mut leaves, mut suspects) = (Vec::new(), Vec::new());
        while let Some(tail) = row(rest, &mut cells).ok_or(CopyError::Malformed)? {
            if cells.len() != self.columns.len() {
                return Err(CopyError::Malformed);
            }
            leaves.push(self.row(&cells, &mut suspects).ok_or(CopyError::Malformed)?);
            rest = tail;
        }
        Ok((leaves, suspects))
    }

    /// Where `spool` ends: sequence and link.
    pub fn end(&self, spool: &[u8]) -> (u64, [u8; 32]) {
        let end = self.skip(spool, self.spools.get(spool).copied().unwrap_or_default());
        (end.sequence, end.link)
    }

    /// The spools that rows were of.
    pub fn spools(&self) -> impl Iterator<Item = &[u8]> {
        self.spools.keys().map(Vec::as_slice)
    }

    /// The place behind what is known to be missing at `place`.
    fn skip(&self, spool: &[u8], mut place: Place) -> Place {
        if self.missing.is_empty() {
            return place;
        }
        while let Some(behind) = self.missing.get(&(spool.to_vec(), place.sequence.wrapping_add(1))) {
            if behind.sequence <= place.sequence {
                break;
            }
            place = *behind;
        }
        place
    }

    fn row(&mut self, cells: &[Option<&[u8]>], suspects: &mut Vec<Suspect>) -> Option<Leaf> {
        let spool = cells[self.places.spool]?;
        let sequence = integer(cells[self.places.sequence]?)? as u64;
        let leaf = integer(cells[self.places.leaf]?)?;
        let owner = cells[self.places.owner]?;
        // A link of another length is no link: it does not follow.
        let link = cells[self.places.link]?.first_chunk::<32>().copied().unwrap_or_default();
        let record = Record { body: cells[self.places.body]?, link, mac: None };
        let mut suspect = |fault| suspects.push(Suspect { leaf, spool: spool.to_vec(), sequence, fault });
        match self.follow(spool, sequence, &record) {
            Some(fault) => suspect(fault),
            None if !self.is_by_its_writer(spool, sequence, &link, cells) => suspect(Fault::Code),
            None => {}
        }
        let owned = self.owners.get(spool).is_some_and(|known| known == owner);
        if !owned || !self.columns_agree(cells, &record) {
            suspect(Fault::Columns);
        }
        Some((leaf, tree::leaf(spool, sequence, cells[self.places.link]?, owner)))
    }

    /// Moves the spool's place on to `record`, whatever is wrong: so each fault is found for itself.
    fn follow(&mut self, spool: &[u8], sequence: u64, record: &Record<'_>) -> Option<Fault> {
        let before = self.skip(spool, self.spools.get(spool).copied().unwrap_or_default());
        let now = Place { sequence, link: record.link };
        match self.spools.get_mut(spool) {
            Some(place) => *place = now,
            None => drop(self.spools.insert(spool.to_vec(), now)),
        }
        let due = before.sequence.wrapping_add(1);
        if sequence != due {
            return Some(Fault::Sequence { due });
        }
        (record::next_link(&before.link, record.body) != record.link).then_some(Fault::Link)
    }

    /// Whether the code is the writer's, as far as its key is known.
    fn is_by_its_writer(&mut self, spool: &[u8], sequence: u64, link: &[u8; 32], cells: &[Option<&[u8]>]) -> bool {
        let mac = self.places.mac.and_then(|place| cells[place]);
        self.writers.get_mut(spool).is_none_or(|writer| writer.wrote(sequence, link, mac))
    }

    fn columns_agree(&self, cells: &[Option<&[u8]>], record: &Record<'_>) -> bool {
        if record.body.len() < record::BODY_HEADER_BYTES
            || cells[self.places.sequence].and_then(integer) != Some(record.sequence() as i64)
        {
            return false;
        }
        let Ok(fields) = record.fields() else { return false };
        let mut values = [None; 256];
        fields.iter().for_each(|(field, value)| values[*field as usize] = Some(*value));
        self.columns.iter().zip(cells).all(|(column, cell)| agrees(*column, *cell, record, &values))
    }
}

fn agrees(column: Column, cell: Option<&[u8]>, record: &Record<'_>, values: &[Option<&[u8]>; 256]) -> bool {
    match column {
        // The places of a row; whether they are right shows in the chain and in the tree.
        Column::Spool | Column::Sequence | Column::Leaf | Column::Owner | Column::Body | Column::Mac => true,
        Column::Link => cell.is_some_and(|link| link.len() == record.link.len()),
        Column::Schema => cell == Some(&(record.schema() as i16).to_be_bytes()),
        Column::Kind => cell == record.kind().map(|kind| kind.name().as_bytes()),
        Column::Time => {
            let microseconds = (record.time_ns() / 1000) as i64;
            cell == Some(&(microseconds - POSTGRES_EPOCH_US).to_be_bytes())
        }
        Column::TimeNs => cell.and_then(numeric) == Some(u128::from(record.time_ns())),
        Column::Field(field) => field_agrees(field.value_type(), cell, values[field as usize]),
        Column::Other => cell.is_none(),
    }
}

fn field_agrees(value_type: Type, cell: Option<&[u8]>, value: Option<&[u8]>) -> bool {
    match (value_type, value) {
        (Type::Number, Some(value)) => {
            let largest = i64::MAX as u64;
            cell == Some(&record::number(value).min(largest).to_be_bytes())
        }
        _ => cell == value,
    }
}

fn header(copied: &[u8]) -> Option<&[u8]> {
    let rest = copied.strip_prefix(SIGNATURE)?;
    let (_flags, rest) = rest.split_at_checked(4)?;
    let (extension, rest) = rest.split_first_chunk::<4>()?;
    rest.get(u32::from_be_bytes(*extension) as usize..)
}

/// Reads one row into `cells` and gives what follows it; inside, none at the end.
fn row<'a>(copied: &'a [u8], cells: &mut Vec<Option<&'a [u8]>>) -> Option<Option<&'a [u8]>> {
    cells.clear();
    let (count, mut rest) = copied.split_first_chunk::<2>()?;
    let count = i16::from_be_bytes(*count);
    if count < 0 {
        return Some(None);
    }
    for _ in 0..count {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        match i32::from_be_bytes(*length) {
            -1 => cells.push(None),
            length => {
                let (cell, tail) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                cells.push(Some(cell));
                rest = tail;
            }
        }
    }
    Some(Some(rest))
}

/// A bigint.
fn integer(cell: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(cell.try_into().ok()?))
}

/// A whole number of type numeric: count of digits, weight of the first, sign, scale; then digits to the base 10,000.
fn numeric(cell: &[u8]) -> Option<u128> {
    let (words, rest) = cell.as_chunks::<2>();
    let [_, weight, [0, 0], [0, 0], digits @ ..] = words else { return None };
    let weight = i16::from_be_bytes(*weight);
    if !rest.is_empty() || digits.len() > 5 || (weight + 1) < digits.len() as i16 || weight > 5 {
        return None;
    }
    let whole = digits.iter().fold(0, |sum, digit| sum * 10_000 + u128::from(u16::from_be_bytes(*digit)));
    Some(whole * 10_000_u128.pow((weight + 1) as u32 - digits.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_numeric_is_read_as_postgres_writes_it() {
        let cases: [(&[i16], Option<u128>); 7] = [
            (&[0, 0, 0, 0], Some(0)),
            (&[1, 0, 0, 0, 7], Some(7)),
            (&[1, 1, 0, 0, 7], Some(70_000)),
            (&[5, 4, 0, 0, 1844, 6744, 737, 955, 1615], Some(u128::from(u64::MAX))),
            (&[1, 0, 0x4000, 0, 7], None),
            (&[1, -1, 0, 4, 7], None),
            (&[1, 0, 0, 0, 7, 7], None),
        ];
        for (words, expected) in cases {
            let cell: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            assert_eq!(numeric(&cell), expected, "{words:?}");
        }
    }

    #[test]
    fn a_code_is_its_writers_over_gaps_too() {
        let writer = |sequence| Writer { key: crate::ratchet::Root::new([1; 32]).next_spool(), sequence };
        let mut key = crate::ratchet::Root::new([1; 32]).next_spool();
        let codes: Vec<_> = (1..=9).map(|_| (key.mac(&[2; 32]), key.advance()).0).collect();
        let code = |sequence: usize| Some(&codes[sequence - 1][..]);
        let mut ours = writer(1);
        assert!(
            ours.wrote(1, &[2; 32], code(1)) && ours.wrote(2, &[2; 32], code(2)) && ours.wrote(8, &[2; 32], code(8))
        );
        assert!(!ours.wrote(9, &[3; 32], code(9)), "another link");
        for (sequence, mac) in [(1, code(2)), (2, code(1)), (1, None), (1 + MAX_PASSED + 1, code(1))] {
            assert!(!writer(1).wrote(sequence, &[2; 32], mac), "{sequence}");
        }
        assert!(!writer(2).wrote(1, &[2; 32], code(1)), "a key that was passed");
    }

    #[test]
    fn a_spool_ends_behind_what_is_known_to_be_missing() {
        let mut walk = Walk::new(&columns()).unwrap();
        for (since, until) in [(1, 4), (5, 9), (11, 12)] {
            walk.miss(b"spool".to_vec(), since, until, [until as u8; 32]);
        }
        assert_eq!(walk.end(b"spool"), (9, [9; 32]));
        assert_eq!(walk.end(b"other"), (0, record::first_link()));
    }

    fn columns() -> Vec<String> {
        ["spool", "sequence", "leaf", "owner", "body", "link"].map(String::from).to_vec()
    }

    proptest! {
        #[test]
        fn any_bytes_are_rows_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut copied = SIGNATURE.to_vec();
            copied.extend([0; 8]);
            copied.extend(bytes);
            let _ = Walk::new(&columns()).unwrap().rows(&copied);
        }
    }
}
