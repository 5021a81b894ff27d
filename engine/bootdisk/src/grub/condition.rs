// SPDX-License-Identifier: Apache-2.0
//! The command `[` (also called `test`): `-o` binds loosest, then `-a`, then `!`.

use crate::error::BootDiskError;

/// Answers about files that a condition may ask for.
pub(super) trait FileQuestions {
    fn is_file(&self, path: &str) -> Result<bool, BootDiskError>;
    fn is_directory(&self, path: &str) -> Result<bool, BootDiskError>;
    fn is_filled(&self, path: &str) -> Result<bool, BootDiskError>;
}

/// Whether the condition holds. What makes no sense does not hold, as in GRUB.
pub(super) fn holds(
    arguments: &[String],
    files: &impl FileQuestions,
) -> Result<bool, BootDiskError> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for any in arguments.split(|word| *word == "-o") {
        let mut all = true;
        for part in any.split(|word| *word == "-a") {
            all = all && primary(part, files)?;
        }
        if all {
            return Ok(true);
        }
    }
    Ok(false)
}

fn primary(words: &[&str], files: &impl FileQuestions) -> Result<bool, BootDiskError> {
    let (not, words) = match words {
        ["!", rest @ ..] => (true, rest),
        words => (false, words),
    };
    let answer = match words {
        ["(", inner @ .., ")"] => primary(inner, files)?,
        ["-n", text] => !text.is_empty(),
        ["-z", text] => text.is_empty(),
        ["-f", path] => files.is_file(path)?,
        ["-d", path] => files.is_directory(path)?,
        ["-e", path] => files.is_file(path)? || files.is_directory(path)?,
        ["-s", path] => files.is_filled(path)?,
        // A variable without quotes that is empty leaves only the operator.
        [] | ["-n" | "-f" | "-d" | "-e" | "-s"] => false,
        ["-z"] => true,
        [text] => !text.is_empty(),
        [left, operator, right] => compare(left, operator, right),
        _ => false,
    };
    Ok(answer != not)
}

fn compare(left: &str, operator: &str, right: &str) -> bool {
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    let numbers = number(left).cmp(&number(right));
    match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "<=" => left <= right,
        ">=" => left >= right,
        "-eq" => numbers.is_eq(),
        "-ne" => numbers.is_ne(),
        "-lt" => numbers.is_lt(),
        "-le" => numbers.is_le(),
        "-gt" => numbers.is_gt(),
        "-ge" => numbers.is_ge(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files;

    impl FileQuestions for Files {
        fn is_file(&self, path: &str) -> Result<bool, BootDiskError> {
            Ok(path == "/f")
        }

        fn is_directory(&self, path: &str) -> Result<bool, BootDiskError> {
            Ok(path == "/d")
        }

        fn is_filled(&self, path: &str) -> Result<bool, BootDiskError> {
            Ok(path == "/f")
        }
    }

    fn test(text: &str) -> bool {
        let words: Vec<String> = text.split(' ').map(|word| word.replace('_', "")).collect();
        holds(&words, &Files).unwrap()
    }

    #[test]
    fn conditions() {
        for text in [
            "a",
            "a = a",
            "a != b",
            "-z _",
            "-n a",
            "! -n _",
            "-f /f",
            "-e /d",
            "-s /f",
            "2 -lt 10",
            "a = b -o c = c",
            "a = a -a b = b",
            "( a = a )",
            "-z",
            "a < b",
        ] {
            assert!(test(text), "{text}");
        }
        for text in [
            "_",
            "a = b",
            "! a",
            "-f /g",
            "-f",
            "-n",
            "a = a -a b = c",
            "a b",
            "a -foo b",
            "10 -lt 2",
            "= b",
        ] {
            assert!(!test(text), "{text}");
        }
    }
}
