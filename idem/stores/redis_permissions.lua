-- The first of the commands that this user may not run on a key of the ledger; nil when it may run them all.
--
-- ARGV = {a key of the ledger}. Nothing is run. Servers before Redis 7 cannot say: they refuse when it comes to it.

local key = ARGV[1]
local commands = {
    {"evalsha", "0", "1", key}, {"exists", key}, {"hdel", key, "f"}, {"hgetall", key}, {"hincrby", key, "f", "1"},
    {"hkeys", key}, {"hmget", key, "f"}, {"hset", key, "f", "v"}, {"persist", key}, {"pexpireat", key, "1"},
    {"ping"}, {"scan", "0"}, {"time"}, {"zadd", key, "0", "m"}, {"zrange", key, "0", "1"}, {"zrem", key, "m"},
}

if not redis.acl_check_cmd then
    return nil
end
for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
        return command[1]
    end
end
return nil
