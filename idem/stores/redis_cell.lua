-- Writes a cell, if its value is still the one that its writer has read.
--
-- A cell is a hash of one field, because a ledger's user may run the commands of hashes anyhow:
--   idem-ledger:{$namespace/cell/$name}:cell   hash: value
--
-- KEYS = {cell}, ARGV = {old value (empty: there is to be none), value, when to forget it (Unix milliseconds; empty: never)}
--
-- Returns nil when it was written; else the value that stood in the way, empty when there was none.

local stored = redis.call("hmget", KEYS[1], "value")[1] or ""
if stored ~= ARGV[1] then
    return stored
end
redis.call("hset", KEYS[1], "value", ARGV[2])
if ARGV[3] ~= "" then
    redis.call("pexpireat", KEYS[1], ARGV[3])
end
return nil
