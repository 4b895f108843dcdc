//! The table as it is in the kernel.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    IterableDataAttrs, Nfgenmsg, OpGetchainDump, OpGetruleDump, OpGetsetDump, OpGetsetelemDump, OpGettableDo, Request,
};
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::ErrorContext;

use super::KernelError;
use super::nft::{FAMILY_INET, Nft};
use super::socket::{Reply, frame};
use crate::policy::{ActualTable, AddressRanges, SetContent, TABLE};

const SET_ANONYMOUS: u32 = 1;
const SET_INTERVAL: u32 = 1 << 2;
const SET_MAP: u32 = 1 << 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const ELEMENT_INTERVAL_END: u32 = 1;

impl Nft {
    /// Reads the table; None when there is none.
    pub fn read(&mut self) -> Result<Option<ActualTable>, KernelError> {
        if !self.table_exists()? {
            return Ok(None);
        }
        let mut actual = ActualTable::default();
        self.read_chains(&mut actual)?;
        self.read_rules(&mut actual)?;
        for (name, flags) in self.read_sets()? {
            let content = self.read_elements(&name, flags)?;
            actual.sets.insert(name, content);
        }
        Ok(Some(actual))
    }

    fn table_exists(&mut self) -> Result<bool, KernelError> {
        let verb = "get";
        let mut request = Request::new().op_gettable_do(&header());
        request.encode().push_name(&table());
        match self.ask::<OpGettableDo<'_>>(&request, false) {
            Ok(replies) => Ok(!replies.is_empty()),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => Ok(false),
            Err(source) => Err(refused(verb, source)),
        }
    }

    fn read_chains(&mut self, actual: &mut ActualTable) -> Result<(), KernelError> {
        let verb = "list chains of";
        let request = Request::new().op_getchain_dump(&header());
        for reply in self.ask::<OpGetchainDump<'_>>(&request, true).map_err(|error| refused(verb, error))? {
            let (_, attributes) = OpGetchainDump::decode_reply(&reply.payload);
            if attributes.get_table().map_err(|error| undecodable(verb, &error))? == &*table() {
                let name = text(attributes.get_name().map_err(|error| undecodable(verb, &error))?);
                // A base chain of ours that hangs at another hook, or at none, is not ours.
                let misplaced = (name == crate::policy::FORWARD) != attributes.get_hook().is_ok();
                actual.chains.insert(name, if misplaced { vec![String::new()] } else { Vec::new() });
            }
        }
        Ok(())
    }

    fn read_rules(&mut self, actual: &mut ActualTable) -> Result<(), KernelError> {
        let verb = "list rules of";
        let mut request = Request::new().op_getrule_dump(&header());
        request.encode().push_table(&table());
        for reply in self.ask::<OpGetruleDump<'_>>(&request, true).map_err(|error| refused(verb, error))? {
            let (_, attributes) = OpGetruleDump::decode_reply(&reply.payload);
            let failed = |error: ErrorContext| undecodable(verb, &error);
            if attributes.get_table().map_err(failed)? != &*table() {
                continue;
            }
            let chain = text(attributes.get_chain().map_err(failed)?);
            let tag = attributes.get_userdata().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            actual.chains.entry(chain).or_default().push(tag.unwrap_or_default());
        }
        Ok(())
    }

    fn read_sets(&mut self) -> Result<Vec<(String, u32)>, KernelError> {
        let verb = "list sets of";
        let mut request = Request::new().op_getset_dump(&header());
        request.encode().push_table(&table());
        let mut sets = Vec::new();
        for reply in self.ask::<OpGetsetDump<'_>>(&request, true).map_err(|error| refused(verb, error))? {
            let (_, attributes) = OpGetsetDump::decode_reply(&reply.payload);
            let failed = |error: ErrorContext| undecodable(verb, &error);
            let flags = attributes.get_flags().unwrap_or(0);
            if attributes.get_table().map_err(failed)? == &*table() && flags & SET_ANONYMOUS == 0 {
                sets.push((text(attributes.get_name().map_err(failed)?), flags));
            }
        }
        Ok(sets)
    }

    fn read_elements(&mut self, set: &str, flags: u32) -> Result<SetContent, KernelError> {
        let verb = "list elements of";
        let mut request = Request::new().op_getsetelem_dump(&header());
        request.encode().push_table(&table()).push_set_bytes(set.as_bytes());
        let mut keys: Vec<(u32, bool)> = Vec::new();
        let mut verdicts = BTreeMap::new();
        for reply in self.ask::<OpGetsetelemDump<'_>>(&request, true).map_err(|error| refused(verb, error))? {
            let (_, attributes) = OpGetsetelemDump::decode_reply(&reply.payload);
            let Ok(elements) = attributes.get_elements() else { continue };
            for element in elements.get_elem() {
                let failed = |error: ErrorContext| undecodable(verb, &error);
                let key = key_of(&element.get_key().map_err(failed)?)
                    .ok_or_else(|| KernelError::Decode { verb, what: format!("key in set {set}") })?;
                if flags & SET_MAP != 0 {
                    let chain = element.get_data().ok().and_then(|data| chain_of(&data)).unwrap_or_default();
                    verdicts.insert(Ipv4Addr::from(key), chain);
                } else {
                    let end = element.get_flags().ok().and_then(|bytes| bytes.try_into().ok());
                    let is_end = end.is_some_and(|bytes| u32::from_be_bytes(bytes) & ELEMENT_INTERVAL_END != 0);
                    keys.push((key, is_end));
                }
            }
        }
        if flags & SET_MAP != 0 {
            return Ok(SetContent::Verdicts(verdicts));
        }
        Ok(SetContent::Addresses(ranges_of(keys, flags & SET_INTERVAL == 0)))
    }

    fn ask<R: NetlinkRequest>(&mut self, request: &R, dump: bool) -> io::Result<Vec<Reply>> {
        let Protocol::Raw { request_type, .. } = request.protocol() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an nftables request"));
        };
        let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { NLM_F_ACK };
        let mut message = frame(request_type, flags, request.payload());
        self.socket.request(&mut message, dump)
    }
}

/// Interval sets list a start and, behind the last address, an end.
fn ranges_of(mut keys: Vec<(u32, bool)>, single: bool) -> AddressRanges {
    if single {
        return AddressRanges::from_ranges(keys.into_iter().map(|(key, _)| (key, key)).collect(), true);
    }
    // At the same key an end comes before a start.
    keys.sort_unstable_by_key(|(key, is_end)| (*key, !is_end));
    let mut ranges = Vec::new();
    let mut open: Option<u32> = None;
    for (key, is_end) in keys {
        if is_end {
            if let Some(first) = open.take() {
                ranges.push((first, key.saturating_sub(1)));
            }
        } else {
            open = Some(key);
        }
    }
    ranges.extend(open.map(|first| (first, u32::MAX)));
    AddressRanges::from_ranges(ranges, false)
}

fn key_of(data: &IterableDataAttrs<'_>) -> Option<u32> {
    Some(u32::from_be_bytes(data.get_value().ok()?.try_into().ok()?))
}

fn chain_of(data: &IterableDataAttrs<'_>) -> Option<String> {
    Some(text(data.get_verdict().ok()?.get_chain().ok()?))
}

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: FAMILY_INET, ..Nfgenmsg::default() }
}

fn table() -> std::ffi::CString {
    std::ffi::CString::new(TABLE).unwrap_or_default()
}

fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

fn refused(verb: &'static str, source: io::Error) -> KernelError {
    KernelError::Refused { verb, object: format!("table inet {TABLE}"), source }
}

fn undecodable(verb: &'static str, error: &ErrorContext) -> KernelError {
    KernelError::Decode { verb, what: format!("{error:?}") }
}
