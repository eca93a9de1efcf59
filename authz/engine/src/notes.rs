//! What Rego policies say of a decision for people, beside their answers: what they print, and how they are annotated.

use crate::attribute::Facts;
use crate::record::{Field, Fields};

/// Bytes that are kept of what is printed, and of annotations.
pub const MAX_NOTE_BYTES: usize = 4096;

/// Headers whose values are credentials: they are not noted down, whoever prints them.
const CREDENTIALS: &[&str] = &["authorization", "cookie", "proxy-authorization"];
/// Shorter words of such a header are no secrets: `Bearer`, or the name of a cookie.
const MIN_SECRET_BYTES: usize = 8;
const MASK: &str = "[redacted]";

/// Notes on one decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// What was printed, a line each.
    pub prints: String,
    /// The annotations of the policies that were asked: objects of JSON, a line each.
    pub annotations: String,
}

impl Notes {
    /// These and `more`, as much as there is room for.
    pub(crate) fn add(&mut self, more: &Self) {
        add_line(&mut self.prints, &more.prints);
        add_line(&mut self.annotations, &more.annotations);
    }

    /// Notes down what a policy printed about `facts`.
    pub(crate) fn print(&mut self, message: &str, facts: &Facts<'_>) {
        let line: String =
            message.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
        add_line(&mut self.prints, &masked(line, facts));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.prints.is_empty() && self.annotations.is_empty()
    }

    /// Writes them to a record. What is printed may be anything of the request: it is left out where `hides`.
    pub fn write(&self, fields: &mut Fields<'_>, hides: bool) {
        if hides && !self.prints.is_empty() {
            fields.redacted(Field::Prints);
        } else if !self.prints.is_empty() {
            fields.bytes(Field::Prints, self.prints.as_bytes());
        }
        if !self.annotations.is_empty() {
            fields.bytes(Field::Annotations, self.annotations.as_bytes());
        }
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.prints.len() + self.annotations.len()
    }
}

/// A line that has no room is cut, and with it whatever would follow.
fn add_line(text: &mut String, line: &str) {
    if line.is_empty() || text.len() + 1 >= MAX_NOTE_BYTES {
        return;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(line);
    text.truncate(text.floor_char_boundary(MAX_NOTE_BYTES));
}

fn masked(mut line: String, facts: &Facts<'_>) -> String {
    for value in CREDENTIALS.iter().filter_map(|name| facts.header(name)) {
        let value = String::from_utf8_lossy(&value);
        let words = value.split([' ', ';', ',', '=', '"']);
        for secret in words.filter(|word| word.len() >= MIN_SECRET_BYTES && line.contains(*word)).collect::<Vec<_>>() {
            line = line.replace(secret, MASK);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;
    use crate::testing::{Document, Sample};

    fn printed(headers: &[(&'static str, &str)], messages: &[&str]) -> String {
        let program = Document::new().load();
        let mut notes = Notes::default();
        Sample::headers(headers).with(|request| {
            messages.iter().for_each(|message| notes.print(message, &program.facts(request, None)));
        });
        notes.prints
    }

    #[test]
    fn what_is_printed_has_a_line_each_and_an_end() {
        assert_eq!(printed(&[], &["a\nb", "c"]), "a b\nc");
        let long = "é".repeat(MAX_NOTE_BYTES);
        assert_eq!(printed(&[], &["xx", &long, "y"]).len(), MAX_NOTE_BYTES - 1);
    }

    #[test]
    fn credentials_are_not_noted() {
        let headers =
            [("authorization", "Bearer aaa.bbb.ccc"), ("cookie", "session=0123456789; theme=dark"), ("x-a", "visible")];
        let given = "aaa.bbb.ccc Bearer visible {\"cookie\": \"session=0123456789; theme=dark\"}";
        let wanted = "[redacted] Bearer visible {\"cookie\": \"session=[redacted]; theme=dark\"}";
        assert_eq!(printed(&headers, &[given]), wanted);
    }

    #[test]
    fn what_is_printed_is_left_out_of_records_that_leave_out_anything() {
        let notes = Notes { prints: "a".to_owned(), annotations: "{}".to_owned() };
        let read = |hides| {
            let fields = record::encode(|fields| notes.write(fields, hides));
            record::read_fields(&fields).expect("fields").iter().map(|(field, _)| *field).collect::<Vec<_>>()
        };
        assert_eq!(read(false), [Field::Prints, Field::Annotations]);
        assert_eq!(read(true), [Field::Annotations]);
    }
}
