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
    schema.to_value()
}
