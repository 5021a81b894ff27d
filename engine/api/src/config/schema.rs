// SPDX-License-Identifier: Apache-2.0
//! The JSON schema of a description (draft 2020-12), for editors and generators.
//!
//! It is made from the types that read the description, so it cannot tell of other keys. What holds
//! between keys (an id that must exist, sizes that must fit) it does not know:
//! `kemari-engine check` does.

use serde_json::Value;

use super::VmConfig;

/// The schema.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(VmConfig);
    schema.insert("title".into(), "VM description of Kemari".into());
    let mut value = schema.to_value();
    tidy(&mut value);
    value
}

/// TOML has no null, and the line breaks of comments mean nothing.
fn tidy(value: &mut Value) {
    let Value::Object(object) = value else {
        if let Value::Array(array) = value {
            array.iter_mut().for_each(tidy);
        }
        return;
    };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            object.insert("type".into(), one);
        }
    }
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    object.values_mut().for_each(tidy);
}
