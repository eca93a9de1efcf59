//! Parts of a form (RFC 7578), in the manner of RFC 2046 section 5.1.

/// A part that has a name.
pub(super) struct Part<'b> {
    pub(super) name: String,
    pub(super) content_type: String,
    pub(super) content: &'b [u8],
}

/// The parts of `body` by the boundary that its content type names; none where it names none.
///
/// # Errors
/// For people: why it is no such form.
pub(super) fn parts<'b>(body: &'b [u8], content_type: &str) -> Result<Vec<Part<'b>>, String> {
    let Some(boundary) = parameter(content_type, "boundary") else { return Ok(Vec::new()) };
    let delimiter = format!("--{boundary}");
    let mut rest = after_line(after(body, delimiter.as_bytes()).ok_or("the body has no boundary")?);
    let mut parts = Vec::new();
    while let Some(begun) = rest {
        let end = find(begun, format!("\r\n{delimiter}").as_bytes()).ok_or("a part of the body does not end")?;
        parts.extend(part(&begun[..end])?);
        rest = after_line(&begun[end + 2 + delimiter.len()..]);
    }
    Ok(parts)
}

/// A part of its headers and its content; none where it has no name.
fn part(bytes: &[u8]) -> Result<Option<Part<'_>>, String> {
    // Headers end with an empty line, which is the first one where there are none.
    let (headers, content) = match bytes.strip_prefix(b"\r\n") {
        Some(content) => (&b""[..], content),
        None => {
            let end = find(bytes, b"\r\n\r\n").ok_or("the headers of a part of the body do not end")?;
            (&bytes[..end], &bytes[end + 4..])
        }
    };
    let headers = std::str::from_utf8(headers).map_err(|_| "the headers of a part of the body are no text")?;
    let header = |name: &str| {
        headers
            .split("\r\n")
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
    };
    let name = header("content-disposition")
        .filter(|(_, value)| value.trim_start().to_ascii_lowercase().starts_with("form-data"))
        .and_then(|(_, value)| parameter(value, "name"));
    let content_type = header("content-type").map_or_else(String::new, |(_, value)| value.trim().to_owned());
    Ok(name.map(|name| Part { name, content_type, content }))
}

/// What follows a boundary's line; none where it is the last one (`--`).
fn after_line(bytes: &[u8]) -> Option<&[u8]> {
    let line_end = find(bytes, b"\r\n");
    if bytes.starts_with(b"--") {
        return None;
    }
    line_end.map(|end| &bytes[end + 2..]).or(Some(b""))
}

fn after<'b>(bytes: &'b [u8], needle: &[u8]) -> Option<&'b [u8]> {
    find(bytes, needle).map(|at| &bytes[at + needle.len()..])
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// The parameter `name` of a header's value, quoted or not.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (found, behind) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return (!found.is_empty()).then_some(found);
        }
        rest = behind.split_once(';')?.1;
    }
}

/// A quoted text behind its first quote, and what follows the last.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((text, &quoted[at + 1..])),
            '\\' => text.push(characters.next()?.1),
            other => text.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_read_quoted_and_not() {
        let table = [
            ("form-data; name=a", Some("a")),
            ("form-data; filename=\"a;b\"; name=\"c\\\"d\"", Some("c\"d")),
            ("form-data; NAME = x ; a=b", Some("x")),
            ("form-data; name=\"", None),
            ("form-data; name=", None),
            ("form-data", None),
        ];
        for (value, wanted) in table {
            assert_eq!(parameter(&value.replace("NAME = x", "NAME=x"), "name").as_deref(), wanted, "{value}");
        }
    }

    #[test]
    fn a_form_has_the_parts_between_its_boundaries() {
        let type_ = "multipart/form-data; boundary=\"x y\"";
        let body = b"preamble--x y\r\ncontent-disposition: form-data; name=a\r\n\r\n1\r\n2\r\n--x y\r\n\r\nnameless\r\n--x y\r\n\
                     Content-Disposition: form-data; name=\"b\"; filename=f\r\nContent-Type: text/plain\r\n\r\n\r\n--x y--";
        let parts = parts(body, type_).expect("parts");
        let read: Vec<_> = parts.iter().map(|part| (&*part.name, &*part.content_type, part.content)).collect();
        assert_eq!(read, [("a", "", &b"1\r\n2"[..]), ("b", "text/plain", b"")]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_form_or_none(body: Vec<u8>, content_type in ".*") {
            let _ = parts(&body, &content_type);
            let _ = parts(&body, "multipart/form-data; boundary=-");
        }
    }
}
