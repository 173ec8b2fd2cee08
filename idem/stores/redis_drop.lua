-- Drops an entry of a list whose record has gone or is in another state. In one step, as the record may come back.
--
-- KEYS = {record, in:$state}, ARGV = {key, state}; returns 1 when there was such an entry.

if redis.call("hmget", KEYS[1], "state")[1] == ARGV[2] then
    return 0
end
return redis.call("zrem", KEYS[2], ARGV[1])
