//! What is refused of a module's source before it is parsed: the parser goes as deep as the source does.

use super::RegoError;

/// Longest module, in bytes.
pub(super) const MAX_MODULE_BYTES: usize = 256 * 1024;
/// Deepest nesting of brackets; each level doubles the parser's work.
pub(super) const MAX_BRACKETS: usize = 12;
/// Most operators in a row, such as the plus signs of a sum or the dots of a reference: each takes a piece of the stack.
pub(super) const MAX_OPERATORS: usize = 512;

/// Refuses source that must not reach the parser.
pub(super) fn check_source(file: &str, source: &str) -> Result<(), RegoError> {
    let refuse = |line, reason: String| Err(RegoError::NotAdmitted { file: file.to_owned(), line, reason });
    if source.len() > MAX_MODULE_BYTES {
        return refuse(1, format!("a module has {} bytes; at most {MAX_MODULE_BYTES} are allowed", source.len()));
    }
    let Extent { brackets, operators } = extent(source);
    if brackets.0 > MAX_BRACKETS {
        let reason = format!("brackets are nested {} deep; at most {MAX_BRACKETS} levels are allowed", brackets.0);
        return refuse(brackets.1, reason);
    }
    if operators.0 > MAX_OPERATORS {
        let reason =
            format!("an expression has {} operators in a row; at most {MAX_OPERATORS} are allowed", operators.0);
        return refuse(operators.1, reason);
    }
    Ok(())
}

/// What a piece of source is to the parser's depth.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'s> {
    /// A name, a keyword, a number or a string.
    Word(&'s str),
    Operator,
    Open,
    Close,
    /// What ends an expression: a comma or a semicolon.
    Separator,
    Newline,
}

/// The tokens of `source`, without its comments, each with its line.
fn tokens(source: &str) -> impl Iterator<Item = (Token<'_>, u32)> {
    let (mut rest, mut line) = (source, 1);
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|character: char| character != '\n' && character.is_whitespace());
        if rest.starts_with('#') {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        }
        let first = rest.chars().next()?;
        let length = match first {
            '"' => quoted(rest),
            '`' => rest[1..].find('`').map_or(rest.len(), |end| end + 2),
            letter if is_word(letter) => rest.find(|other| !is_word(other)).unwrap_or(rest.len()),
            other => other.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        let at = line;
        rest = after;
        line += token.bytes().filter(|&byte| byte == b'\n').count() as u32;
        let token = match first {
            '\n' => Token::Newline,
            '(' | '[' | '{' => Token::Open,
            ')' | ']' | '}' => Token::Close,
            ',' | ';' => Token::Separator,
            '"' | '`' => Token::Word(token),
            letter if is_word(letter) => Token::Word(token),
            _ => Token::Operator,
        };
        Some((token, at))
    })
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The length of the string that `text` begins with. It ends with its line at the latest: the parser will say so.
fn quoted(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '"' => return at + 1,
            '\n' => return at,
            _ => {}
        }
    }
    text.len()
}

/// Whether `source` has the keyword `if` last, but for comments.
pub(super) fn ends_with_if(source: &str) -> bool {
    let words = tokens(source).map(|(token, _)| token);
    words.filter(|token| *token != Token::Newline).last() == Some(Token::Word("if"))
}

/// How deep and how far the parser must go, and the lines that it must do so for.
#[derive(Default)]
struct Extent {
    brackets: (usize, u32),
    operators: (usize, u32),
}

fn extent(source: &str) -> Extent {
    let mut extent = Extent::default();
    let mut in_a_row = vec![0]; // for each bracket that is open
    let (mut after_newline, mut after_operator) = (false, false);
    for (token, line) in tokens(source) {
        let is_operator = matches!(token, Token::Operator | Token::Word("in"));
        // An expression goes on behind a line's end where an operator stands on either side of it.
        let ends = token == Token::Separator || (after_newline && !is_operator && !after_operator);
        let depth = in_a_row.len() - 1;
        if ends {
            in_a_row[depth] = 0;
        }
        match token {
            Token::Newline => {
                after_newline = true;
                continue;
            }
            Token::Open => in_a_row.push(0),
            Token::Close if depth > 0 => drop(in_a_row.pop()),
            _ => {}
        }
        if is_operator || token == Token::Open {
            in_a_row[depth] += 1;
            extent.operators = more(extent.operators, (in_a_row[depth], line));
        }
        extent.brackets = more(extent.brackets, (in_a_row.len() - 1, line));
        (after_newline, after_operator) = (false, is_operator);
    }
    extent
}

/// The one that counts more, the first of equals.
fn more(known: (usize, u32), other: (usize, u32)) -> (usize, u32) {
    if other.0 > known.0 {
        other
    } else {
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(source: &str) -> String {
        check_source("p.rego", source).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn operators_in_a_row_are_counted() {
        let row = |unit: &str| format!("x := 1{}", unit.repeat(MAX_OPERATORS + 1));
        for unit in
            ["+1", "\n+1", "+\n1", "-", "- ", ".a", "[0]", "(0)", " in y", "&y", "|{1}", "<1", " == 1", "*-1", "\n.a"]
        {
            assert!(refusal(&row(unit)).contains("operators in a row"), "{unit:?}");
        }
        for unit in [",1", ";x", "\nx := 1", "\n[x] := 1", "\"+\"", "`+`", "# ++\n", " y", "\n[x]"] {
            assert_eq!(refusal(&row(unit)), "", "{unit:?}");
        }
        let inside = format!("x := [1,\n  2{}]", "+1".repeat(MAX_OPERATORS + 1));
        assert_eq!(refusal(&inside), "p.rego:2: an expression has 513 operators in a row; at most 512 are allowed");
    }

    #[test]
    fn brackets_are_counted_where_they_are_brackets() {
        let nested = |depth: usize| format!("x := 1\ny := {}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(refusal(&nested(MAX_BRACKETS)), "");
        let refused = "p.rego:2: brackets are nested 13 deep; at most 12 levels are allowed";
        assert_eq!(refusal(&nested(MAX_BRACKETS + 1)), refused);
        for text in ["\"[[[[[[[[[[[[[[\\\"[[\"", "`[[[[[[[[[\n[[[[[[[[[`", "# [[[[[[[[[[[[[[[\n1", "]]]]]]]]]]]]]]]]"] {
            assert_eq!(refusal(text), "", "{text}");
        }
    }
}
